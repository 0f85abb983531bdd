"""What tells one source from another, so that an interrupted run goes on with its own chunks alone."""

import os
from typing import Any

import numpy as np
import xxhash

from daskcurate.config import digest
from daskcurate.embeddings import VERSION
from daskcurate.io.ids import canonical_ids, hash_ids, is_text
from daskcurate.io.paths import file_states
from daskcurate.io.pool import PoolPlan
from daskcurate.io.resolve import Opened, Options
from daskcurate.io.sources import ArrayRows, RowReader

State = list[Any]


def run_digest(
    plan: PoolPlan, opened: Opened, options: Options, ids: Any, id_source: RowReader | None
) -> str | None:
    """Return a digest of all that decides the content of a pool; None for a source that may change unnoticed."""
    rows = files_state(list(opened.urls))
    found_ids = ids_state(ids, id_source)
    if rows is None or found_ids is None:
        return None
    settings = [plan.dtype, plan.chunk_rows, plan.normalize, plan.near_unit, plan.text_ids]
    return digest(VERSION, list(plan.shape), settings, opened.format, repr(options), rows, found_ids)[:16]


def files_state(names: list[str]) -> State | None:
    """Return the states of files; None if one of the names is not that of a file, or there are none."""
    states = [file_states(name) if "://" in name or os.path.isabs(name) else None for name in names]
    return None if not states or any(state is None for state in states) else states


def ids_state(given: Any, source: RowReader | None) -> State | None:
    """Return the state of ids: of their files, or of what is in memory; None if it cannot be told."""
    if source is None:
        return []
    if isinstance(source, ArrayRows):
        return [_content(source)]
    files = files_state([name for name, _ in source.files])
    named = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    return None if files is None else [named, files]


def _content(source: ArrayRows) -> str:
    try:
        block = canonical_ids(source.read(0, len(source)), is_text(source))
    except ValueError:  # an id that is not allowed: nothing will be kept
        return "refused"
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(hash_ids(block)).data)
