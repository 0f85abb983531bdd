"""What an embedding run is told, checked once, and what of it goes with every task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daskcurate.config import Config, check_choice, check_int
from daskcurate.io.ingest import check_dtype, check_flags

DEVICES = ("auto", "cpu", "cuda")
AUTOCASTS = ("bfloat16", "float16")
ON_ERRORS = ("raise", "skip")
WINDOW_BATCHES = 64
"""Batches whose samples are in memory at once where they are sorted."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Config):
    """How samples become rows."""

    batch_size: int = 256
    """Samples that the model sees at once; the last batch of a chunk may have fewer."""
    device: str = "auto"
    """``auto``: a GPU where the workers have one."""
    autocast: str | None = None
    """The type in which torch computes what it may: ``bfloat16``, ``float16``, or None: as the model is."""
    normalize: bool | None = None
    """True: rows are divided by their norm. None: they are left, with a warning unless of unit length."""
    dtype: str | None = None
    """Of the pool; None: float16 where the model returns that, otherwise float32."""
    on_error: str = "raise"
    """What a broken sample does: ``raise`` stops the run, ``skip`` leaves the sample out."""
    chunk_rows: int | None = None
    revision: str | None = None
    """Stands for the content of model and dataset."""

    def __post_init__(self):
        self._set("batch_size", check_int("batch_size", self.batch_size, 1))
        check_choice("device", self.device, DEVICES)
        if self.autocast is not None:
            check_choice("autocast", self.autocast, AUTOCASTS)
        check_flags(self.normalize, False)
        self._set("dtype", check_dtype(self.dtype))
        check_choice("on_error", self.on_error, ON_ERRORS)
        if self.chunk_rows is not None:
            self._set("chunk_rows", check_int("chunk_rows", self.chunk_rows, 1))
        if self.revision is not None and (not isinstance(self.revision, str) or not self.revision):
            raise TypeError(f"revision={self.revision!r} is not allowed: give a text or None")

    @property
    def needs_torch(self) -> str | None:
        """The setting that needs torch whatever the model is."""
        if self.device == "cuda":
            return "device='cuda'"
        return None if self.autocast is None else f"autocast={self.autocast!r}"


@dataclass(frozen=True)
class Parts:
    """The user's objects, which workers load from a file instead of being sent them with each task."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None
    sort_by: Callable[[Any], Any] | None
    id_of: Any


@dataclass(frozen=True)
class Job:
    """What every task of a run is given: small, and the same for all of them."""

    folder: str
    """Where model and parts were pickled to."""
    token: str
    config: EmbedConfig
    device: str = "auto"
    """``cpu`` or ``cuda`` once the first task has found out."""
    width: int | None = None
    dtype: str = "float32"
    text_ids: bool = False
