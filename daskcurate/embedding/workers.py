"""What runs on the workers: the model is loaded once a process, the dataset once a thread."""

import contextlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cloudpickle
import fsspec
import numpy as np
import xxhash

from daskcurate.config import digest
from daskcurate.embedding import torch_tools
from daskcurate.embedding.batches import Block, BrokenSample, Embedder, EmbeddingError, _Broken
from daskcurate.embedding.identity import content_digest
from daskcurate.embedding.settings import Job, Parts
from daskcurate.io import ids as id_tools
from daskcurate.io.chunkwise import Written
from daskcurate.io.pool import PoolPlan, read_stored, store_ids, store_rows
from daskcurate.io.sources import RowReader
from daskcurate.tasks import keep_freed_memory, one_blas_thread

PROBED = 16
"""Samples, spread evenly, that tell a dataset from another one of the same length and class."""


def is_factory(value: Any) -> bool:
    """Tell whether a callable makes what is meant: it can be called without arguments, and takes none."""
    if torch_tools.is_module(value) or not callable(value):
        return False
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # of an extension module: no factory, but a function of a batch
        return False
    return not any(item.default is item.empty or item.kind is item.VAR_POSITIONAL for item in parameters)


def save(job: Job, model: Any, parts: Parts) -> None:
    """Pickle the user's objects to where the workers load them from."""
    if torch_tools.is_module(model):
        model = torch_tools.on_host(model)
    for name, value in (("model", model), ("parts", parts)):
        with fsspec.open(f"{job.folder}/{name}.pkl", "wb") as file:
            try:
                cloudpickle.dump(value, file)
            except Exception as error:
                raise TypeError(
                    f"the {'model' if name == 'model' else 'dataset (or collate, sort_by, id_of)'} cannot be "
                    f"pickled ({type(error).__name__}: {error}): give a function without arguments that makes it"
                ) from error


@dataclass
class _Loaded:
    """The model of a run, and a dataset for each thread."""

    model: Any
    run: Callable[[Any], Any]
    device: str
    parts: dict[int, Parts] = field(default_factory=dict)
    """By thread: datasets keep open files, and tokenizers state, that threads must not share."""


_lock = threading.Lock()
_loaded: dict[str, _Loaded] = {}


def forget(token: str) -> None:
    """Let go of the model of a run that has ended; without the lock, which a worker that loads may hold long."""
    _loaded.pop(token, None)


def _load(job: Job, name: str) -> Any:
    with fsspec.open(f"{job.folder}/{name}.pkl", "rb") as file:
        try:
            return cloudpickle.load(file)
        except ImportError as error:
            hint = ": pip install 'daskcurate[torch]' there" if error.name == "torch" else ""
            raise ImportError(f"a worker cannot load the {name}: {error}{hint}") from error


def _model(job: Job) -> _Loaded:
    with _lock:
        if job.token not in _loaded:
            _loaded.clear()  # of a run whose client was lost, perhaps
            model = _load(job, "model")
            if is_factory(model):
                model = model()
            if not callable(model):
                raise TypeError(f"the model is of type {type(model).__name__}, which cannot be called")
            _loaded[job.token] = _prepared(model, job)
        return _loaded[job.token]


def _prepared(model: Any, job: Job) -> _Loaded:
    if torch_tools.is_module(model):
        device = torch_tools.chosen_device(job.device)
        return _Loaded(model, torch_tools.runner(model, device, job.config.autocast), device)
    if job.config.needs_torch is not None:
        raise TypeError(
            f"{job.config.needs_torch} is not allowed with a model of type {type(model).__name__}: it is for "
            "torch modules, and other callables see to that themselves"
        )
    return _Loaded(model, lambda batch: torch_tools.to_array(model(batch)), "cpu")


def embedder_of(job: Job) -> Embedder:
    """Return this thread's embedder; what it needs is loaded at the first call."""
    found = _model(job)
    thread = threading.get_ident()
    if thread not in found.parts:
        parts: Parts = _load(job, "parts")
        if makes_dataset(parts.dataset):
            parts = replace(parts, dataset=parts.dataset())
        require_dataset(parts.dataset)
        found.parts[thread] = from_loader(parts)
    parts = found.parts[thread]
    collate = parts.collate
    if collate is None:
        collate = torch_tools.default_collate if torch_tools.is_module(found.model) else list
    return Embedder(
        parts.dataset, found.run, collate, parts.sort_by, parts.id_of, job.config.batch_size, job.dtype,
        job.config.normalize is True, job.config.on_error == "skip", job.width, job.text_ids,
    )  # fmt: skip


def is_loader(value: Any) -> bool:
    """Tell whether ``value`` is a torch DataLoader, or like one."""
    return hasattr(value, "dataset") and hasattr(value, "collate_fn")


def makes_dataset(value: Any) -> bool:
    """Tell whether ``value`` is no dataset, but makes one."""
    is_one = not isinstance(value, type) and (is_loader(value) or hasattr(value, "__getitem__"))
    return not is_one and is_factory(value)


def from_loader(parts: Parts) -> Parts:
    """Return parts with the dataset and the collate function of a DataLoader, if one was given."""
    loader = parts.dataset
    if not is_loader(loader):
        return parts
    collate = parts.collate if parts.collate is not None else loader.collate_fn
    return replace(parts, dataset=loader.dataset, collate=collate)


def require_dataset(dataset: Any) -> None:
    """Raise unless ``dataset`` has a length and samples by number."""
    if is_loader(dataset):
        dataset = dataset.dataset
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or isinstance(
        dataset, str | bytes | dict
    ):
        raise TypeError(
            f"dataset of type {type(dataset).__name__} is not allowed: give one with len() and samples by number "
            "(a map-style torch dataset, a list, an array), a DataLoader of such a one, or a function without "
            "arguments that makes it"
        )
    if len(dataset) == 0:
        raise ValueError("the dataset is empty: it has 0 samples")


@dataclass(frozen=True)
class Probed:
    """What the first task of a run finds out."""

    n: int
    width: int
    dtype: str
    device: str
    text_ids: bool
    content: str
    """A digest of the model and of what was looked at of the dataset."""
    name: str


def probe(job: Job) -> Probed:
    """Load everything on one worker, embed a sample, and tell what there is."""
    keep_freed_memory()
    made = embedder_of(job)
    loaded = _model(job)
    with one_blas_thread(), torch_tools.one_thread():
        parts = loaded.parts[threading.get_ident()]
        n = len(made.dataset)
        spread = sorted({int(row) for row in np.linspace(0, n - 1, PROBED)})
        content: list[str] = []
        if job.config.revision is None:  # before any of them is used, which may change what they hold
            content += [content_digest(item) for item in (parts.collate, parts.sort_by, parts.id_of)]
            content += [content_digest(loaded.model), _samples_digest(made.dataset, spread)]
        made, first = _first_usable(made, spread)
    kinds = [f"{type(item).__module__}.{type(item).__qualname__}" for item in (loaded.model, made.dataset)]
    return Probed(
        n, first.shape[1], "float16" if first.dtype.itemsize == 2 else "float32", loaded.device, made.text_ids,
        digest(n, kinds, content), f"{_name(loaded.model)} of {type(made.dataset).__name__}",
    )  # fmt: skip


def _name(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _first_usable(made: Embedder, rows: list[int]) -> tuple[Embedder, np.ndarray]:
    """Return the rows of the first of these samples that can be embedded, and which kind of ids they have."""
    first = ""
    for row in rows:
        try:
            sample = made._sample(row)
            if made.id_of is not None:
                made = replace(made, text_ids=_is_text_id(made, sample))
            return made, made.values_of([sample])
        except _Broken as error:
            if not made.skip:
                raise BrokenSample(row, None, str(error)) from error
            first = first or f"sample {row}: {error}"
    raise ValueError(f"none of {len(rows)} samples spread over the dataset can be embedded; {first}")


def _is_text_id(made: Embedder, sample: Any) -> bool:
    for text in (True, False):
        with contextlib.suppress(_Broken):
            replace(made, text_ids=text).checked_id(sample)
            return text
    made.checked_id(sample)
    return False


def _samples_digest(dataset: Any, rows: list[int]) -> str:
    found = []
    for row in rows:
        try:
            found.append(content_digest(dataset[row]))
        except Exception:  # broken: so it will be the next time
            found.append("broken")
    return digest(found)


class EmbeddedRows(RowReader):
    """The rows that a model makes of a dataset; yields a :class:`Block` for each range."""

    def __init__(self, job: Job, n: int):
        super().__init__("the dataset", (n, job.width or 0), job.dtype)
        self.job = job

    def read(self, start: int, stop: int) -> Any:
        """Return the block of samples ``start`` to ``stop``."""
        keep_freed_memory()
        made = embedder_of(self.job)
        with one_blas_thread(), torch_tools.one_thread():
            return made.embed_range(start, stop)


def write_block(plan: PoolPlan, start: int, block: Block) -> Written:
    """Store a chunk's rows, and its ids where they came with the samples."""
    written = store_rows(plan, start, block.rows, block.low, block.high)
    written = replace(written, skipped=tuple(block.skipped))
    if not block.ids:
        return written
    missing: int | str = "" if plan.text_ids else 0
    ids = np.array([missing if item is None else item for item in block.ids], object)
    stored = store_ids(plan, start, id_tools.canonical_ids(ids, plan.text_ids))
    return replace(written, hashes=stored.hashes, ids_digest=stored.digest)


def recall_block(plan: PoolPlan, skip: bool, start: int, stop: int, marker: Written) -> Written | None:
    """Return what is known of a chunk, if what is stored is what its marker says.

    Chunks without some samples count only where samples may be skipped: these may have been mended.
    """
    if marker.skipped and not skip:
        return None
    rows = read_stored(plan, "embeddings", start, stop)
    if rows is None or xxhash.xxh3_128_hexdigest(rows.data) != marker.digest:
        return None
    if marker.ids_digest is None:
        return marker
    ids = read_stored(plan, "ids", start, stop)
    if ids is None:
        return None
    hashes = id_tools.hash_ids(id_tools.canonical_ids(ids, plan.text_ids))
    same = xxhash.xxh3_128_hexdigest(hashes.data) == marker.ids_digest
    return replace(marker, hashes=hashes) if same else None


__all__ = ["BrokenSample", "EmbeddedRows", "EmbeddingError", "Probed", "forget", "probe"]
