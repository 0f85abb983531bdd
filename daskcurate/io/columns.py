"""Columns of Arrow schemas: which hold embeddings or ids, and their values as NumPy arrays."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from daskcurate.io.sources import BadRow


def is_vector(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds lists of floats."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds strings or bytes."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in (*checks, pa.types.is_binary, pa.types.is_large_binary))


def is_id(kind: pa.DataType) -> bool:
    """Tell whether a column of this type may hold ids."""
    return pa.types.is_integer(kind) or is_text(kind)


def listed(names: Any) -> str:
    """Return names as they are shown in an error message."""
    return ", ".join(repr(name) for name in names) or "none"


def require_column(name: str, schema: pa.Schema, column: str) -> None:
    """Raise unless the file (or table) ``name`` has the column."""
    if column not in schema.names:
        raise ValueError(f"column={column!r} is not in {name}: give one of {listed(schema.names)}")


def choose_vector_column(name: str, schema: pa.Schema, column: str | None) -> str:
    """Return ``column`` if it holds lists of floats, or the only column that does."""
    vectors = [field.name for field in schema if is_vector(field.type)]
    if column is None:
        if len(vectors) == 1:
            return vectors[0]
        if vectors:
            raise ValueError(f"{name} has several columns of embeddings ({listed(vectors)}): give column=")
        raise ValueError(f"{name} has no column of lists of floats; its columns are {listed(schema.names)}")
    vector_type(name, schema, column)
    return column


def vector_type(name: str, schema: pa.Schema, column: str) -> pa.DataType:
    """Return the type of a column of lists of floats; raise if it is none."""
    require_column(name, schema, column)
    kind = schema.field(column).type
    if not is_vector(kind):
        raise TypeError(f"column={column!r} of {name} holds {kind}: give a column of lists of floats")
    return kind


def choose_id_column(name: str, schema: pa.Schema, column: str | None) -> str:
    """Return ``column``, or the first one that holds integers or strings."""
    if column is not None:
        require_column(name, schema, column)
        return column
    suitable = [field.name for field in schema if is_id(field.type)]
    if not suitable:
        raise ValueError(f"{name} has no column of integers or strings for ids")
    return suitable[0]


def id_dtype(name: str, schema: pa.Schema, column: str) -> np.dtype:
    """Return the dtype in which a column of ids is read; raise if it holds no ids."""
    require_column(name, schema, column)
    kind = schema.field(column).type
    if pa.types.is_null(kind):
        return np.dtype(object)  # that of a file without rows; a null row is an error when it is read
    if not is_id(kind):
        raise TypeError(f"ids: column {column!r} of {name} holds {kind}; allowed are integers and strings")
    return np.dtype(object) if is_text(kind) else np.dtype(kind.to_pandas_dtype())


def vector_dtype(kind: pa.DataType) -> np.dtype:
    """Return the dtype of the numbers in a column of lists."""
    return np.dtype(kind.value_type.to_pandas_dtype())


def column_values(values: Any, column: str, width: int | None) -> np.ndarray:
    """Return Arrow values as rows of ``width`` numbers, or as ids where that is None.

    Raises
    ------
    BadRow
        For a null, or a list of another width.
    """
    if values.null_count:
        raise BadRow(int(np.flatnonzero(values.is_null())[0]), f"is null in column {column!r}")
    if width is None:
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        return values.to_numpy(zero_copy_only=False)
    if not pa.types.is_fixed_size_list(values.type):
        widths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        other = np.flatnonzero(widths != width)
        if other.size:
            raise BadRow(other[0], f"has width {widths[other[0]]}, but the rows before it {width}")
    return values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
