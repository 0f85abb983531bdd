"""A run's selection where training data is read: a torch dataset, a sampler, a webdataset stream.

Everything here takes a run store and the name of a stage in it, holds plain NumPy arrays, and can be pickled
into the workers of a ``DataLoader``. torch is imported only where a sampler of it is made.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from daskcurate.config import check_int
from daskcurate.embeddings import Embeddings, open_embeddings
from daskcurate.io.ids import hash_ids
from daskcurate.io.paths import PathLike
from daskcurate.io.writers import SAMPLER_ROWS
from daskcurate.stored import StoredSelection, find_selection


def selected_indices(store: PathLike, stage: str, *, repeats: bool = True) -> np.ndarray:
    """Return the selected row numbers, as ``datasets.Dataset.select`` and ``torch.utils.data.Subset`` take them.

    Parameters
    ----------
    store, stage
        Run store, and name of a selection in it; see :func:`daskcurate.stored.find_selection`.
    repeats
        Whether a row that is selected several times comes as often, or once.

    Returns
    -------
    numpy.ndarray
        (m,) int64, ascending.
    """
    found = [np.empty(0, np.int64)]
    for first, counts in find_selection(store, stage).blocks():
        rows = np.flatnonzero(counts > 0)
        found.append(first + (np.repeat(rows, counts[rows]) if repeats else rows))
    return np.concatenate(found)


def weighted_sampler(
    store: PathLike, stage: str, *, num_samples: int | None = None, generator: Any = None
) -> Any:
    """Return a ``torch.utils.data.WeightedRandomSampler`` that draws rows as often as they are selected.

    Parameters
    ----------
    store, stage
        Run store, and name of a selection in it.
    num_samples
        Draws of an epoch; None: as many as rows are selected, repeats counted.
    generator
        A ``torch.Generator``.

    Raises
    ------
    ValueError
        For more than 2^24 rows, which torch's sampler does not take.
    """
    found = find_selection(store, stage)
    n = found.counts.shape[0]
    if n > SAMPLER_ROWS:
        raise ValueError(
            f"{n:,} rows are more than the {SAMPLER_ROWS:,} that torch's WeightedRandomSampler takes: use "
            "SelectedDataset with shuffle=True"
        )
    draws = found.total if num_samples is None else check_int("num_samples", num_samples, 1)
    from torch.utils.data import WeightedRandomSampler

    weights = np.concatenate([counts.astype(np.float64) for _, counts in found.blocks()])
    return WeightedRandomSampler(weights, draws, replacement=True, generator=generator)


class SelectedDataset:
    """The selected items of a map-style dataset: anything with ``len()`` and ``[number]``.

    Item i is the one of the i-th selected row, where row numbers are those of the pool and so of the dataset
    whose embeddings it holds. What ``torch.utils.data.DataLoader`` asks of a map-style dataset is there.

    Parameters
    ----------
    dataset
        The whole dataset, in the pool's order.
    store, stage
        Run store, and name of a selection in it.
    repeats
        Whether a row that is selected several times is an item as often, or once.

    Raises
    ------
    ValueError
        If the dataset has another number of items than the pool has rows.
    """

    def __init__(self, dataset: Any, store: PathLike, stage: str, *, repeats: bool = True):
        n = find_selection(store, stage).counts.shape[0]
        if len(dataset) != n:
            raise ValueError(
                f"dataset has {len(dataset):,} items, and the stage {stage} covers {n:,} rows: give the dataset "
                "whose embeddings the pool holds, in the same order"
            )
        self.dataset = dataset
        self.indices = selected_indices(store, stage, repeats=repeats)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]


class KeyFilter:
    """Whether a sample of a webdataset stream is selected, told by its key.

    To be used as ``WebDataset(...).select(KeyFilter(...))``; :meth:`repeated` passes samples on as often as they
    are selected. Keys are the ids of the pool. A key that the pool does not have is not selected.

    A kept key takes 8 bytes (12 where counts differ): what is held are 64-bit hashes. Kept keys are told from
    all other keys of the pool exactly: the few whose hashes are equal are held as they are.

    Parameters
    ----------
    store, stage
        Run store, and name of a selection in it.
    pool
        The pool whose ids are the keys: an :class:`daskcurate.Embeddings`, a path or a URL.

    Raises
    ------
    ValueError
        If the pool has no ids, or the stage selects rows of another pool.
    """

    def __init__(self, store: PathLike, stage: str, pool: Embeddings | PathLike):
        emb = pool if isinstance(pool, Embeddings) else open_embeddings(pool)
        if not emb.has_ids:
            raise ValueError(
                f"the pool {emb.path} has no ids, so keys cannot be looked up: ingest it with ids="
            )
        found = find_selection(store, stage)
        found.require_pool(emb)
        hashes, counts = _kept(found, emb)
        order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[order]
        self.counts = None if np.all(counts == 1) else counts[order]
        self.exact = _ambiguous(found, emb, self.hashes)

    def count(self, key: str) -> int:
        """Return how often the sample of this key is selected."""
        if key in self.exact:
            return self.exact[key]
        value = _hashed(np.array([key], np.dtypes.StringDType()))[0]
        place = int(np.searchsorted(self.hashes, value))
        if place == len(self.hashes) or self.hashes[place] != value:
            return 0
        return 1 if self.counts is None else int(self.counts[place])

    def __call__(self, sample: Any) -> bool:
        """Tell whether a sample (with its ``__key__``), or a key, is selected."""
        return self.count(_key(sample)) > 0

    def repeated(self, samples: Iterable[Any]) -> Iterator[Any]:
        """Yield each sample as often as it is selected; for ``WebDataset(...).compose(...)``."""
        for sample in samples:
            for _ in range(self.count(_key(sample))):
                yield sample


def _key(sample: Any) -> str:
    return str(sample["__key__"]) if isinstance(sample, dict) else str(sample)


def _hashed(ids: np.ndarray) -> np.ndarray:
    """Return the hashes of keys: of the text of an id, also of one that is a number."""
    return hash_ids(ids if ids.dtype.kind == "T" else ids.astype(np.dtypes.StringDType()))


def _blocks(found: StoredSelection, emb: Embeddings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (counts, ids) of neighbouring rows."""
    ids = emb.ids
    for first, counts in found.blocks():
        yield counts, np.asarray(ids[first : first + len(counts)].compute(scheduler="synchronous"))


def _kept(found: StoredSelection, emb: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    hashes, kept = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    for counts, ids in _blocks(found, emb):
        hashes.append(_hashed(ids[counts > 0]))
        kept.append(counts[counts > 0].astype(np.int32))
    return np.concatenate(hashes), np.concatenate(kept)


def _ambiguous(found: StoredSelection, emb: Embeddings, hashes: np.ndarray) -> dict[str, int]:
    """Return the counts of those keys of the pool whose hash is that of a kept key, and not its alone."""
    shared = [hashes[1:][hashes[1:] == hashes[:-1]]]
    for counts, ids in _blocks(found, emb):
        removed = _hashed(ids[counts == 0])
        shared.append(removed[_among(removed, hashes)])
    values = np.unique(np.concatenate(shared))
    exact: dict[str, int] = {}
    if values.size:
        for counts, ids in _blocks(found, emb):
            for row in np.flatnonzero(_among(_hashed(ids), values)):
                exact[str(ids[row])] = int(counts[row])
    return exact


def _among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Tell which values are in a sorted array."""
    if not ordered.size:
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[places] == values
