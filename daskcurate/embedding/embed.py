"""The verb ``embed``: a model over a dataset into a pool."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import dask
import numpy as np
import xxhash

from daskcurate.config import check_flag, digest
from daskcurate.embedding import torch_tools
from daskcurate.embedding.batches import BrokenSample
from daskcurate.embedding.kept import KeptRows, chunks_with_skipped, dropped_rows, write_skipped
from daskcurate.embedding.settings import EmbedConfig, Job, Parts
from daskcurate.embedding.workers import (
    EmbeddedRows,
    Probed,
    forget,
    is_factory,
    is_loader,
    makes_dataset,
    probe,
    recall_block,
    require_dataset,
    save,
    write_block,
)
from daskcurate.embeddings import IDS, Embeddings, PoolRows, open_embeddings
from daskcurate.io import pool
from daskcurate.io.chunkwise import ChunkJob, Report, Skipped, Written, write_chunks
from daskcurate.io.ids import is_text, open_ids, require_unique
from daskcurate.io.ingest import warn_of_norms, warn_user
from daskcurate.io.layout import chunk_rows_for
from daskcurate.io.paths import PathLike, as_url, discard, make_folder
from daskcurate.io.resolve import Opened, Options
from daskcurate.io.rows import is_unit
from daskcurate.io.source_states import ids_state
from daskcurate.io.sources import NumberRows, PoolReader, RowReader
from daskcurate.io.zarrs import ZarrRows, open_zarr
from daskcurate.progress import job_progress
from daskcurate.runner import current_client, run_tasks

VERSION = 1
"""Of what the content of a chunk follows from; changed when the same arguments would give other rows."""


def embed(
    model: Any,
    dataset: Any,
    dest: PathLike,
    *,
    ids: Any = None,
    id_of: Any = None,
    collate: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 256,
    sort_by: Callable[[Any], Any] | None = None,
    device: str = "auto",
    autocast: str | None = None,
    normalize: bool | None = None,
    dtype: Any = None,
    on_error: str = "raise",
    revision: str | None = None,
    overwrite: bool = False,
    chunk_rows: int | None = None,
) -> Embeddings:
    """Embed a dataset into a pool: row i is what the model makes of sample i.

    Tasks of the current Dask client (without one, threads of this process) embed a chunk each. Every worker
    process loads the model once and keeps it; every worker thread loads the dataset once. Batches follow from
    the chunks, and on a CPU torch computes with one thread a task: the rows have the same bits however many
    workers there are.

    After an interruption the finished chunks wait in ``DEST.partial``, and the same call goes on with those
    that are missing. Finished chunks are taken if all these are the same: settings, ids, the model (classes,
    structure, weights; of other callables code and attributes), ``collate``, ``sort_by`` and ``id_of``, and of the
    dataset its class, its length and 16 samples spread over it. Other samples are not compared, nor functions
    that these call: give another ``revision`` when they change. ``on_error`` may change.

    Parameters
    ----------
    model
        A torch module, or any callable that takes a batch and returns (n, width) floats, an array or a tensor.
        Or a function without arguments that makes it: for what is large, or is loaded best where it is used.
    dataset
        Samples by number, with a length: a map-style torch dataset, a list, an array; a DataLoader of one (its
        dataset and collate function count; its order, sampler and batch size do not). Or a function without
        arguments that makes it.
    dest
        Path or URL of the pool, which all workers can reach.
    ids
        An id a sample, as :func:`daskcurate.ingest` takes them. None: those of ``id_of``, otherwise row numbers.
    id_of
        Where a sample's id is: a function of the sample, or the key (or position) of it in the sample.
    collate
        Makes a batch of a list of samples. None: torch's own for torch modules, which stacks tensors and numbers;
        other callables get the list.
    batch_size
        Samples in a batch.
    sort_by
        A function of a sample, such as ``len``, by which the samples of a chunk are sorted (64 batches at a
        time), so that those of a batch are of about the same length. The pool is in the dataset's order.
    device
        For torch modules: ``"cpu"``, ``"cuda"`` (the worker's first GPU), or ``"auto"``: a GPU if there is one.
    autocast
        For torch modules: ``"bfloat16"`` or ``"float16"``, to compute under ``torch.autocast``.
    normalize
        True: divide every row by its L2 norm. False: leave the rows as they are. None: leave them, and warn if
        they are not of unit length.
    dtype
        ``"float16"`` or ``"float32"``; None: float16 if the model returns that, otherwise float32.
    on_error
        What happens with a broken sample: one that cannot be read or collated, on which the model fails, or whose
        row has NaN, an infinity, another width or norm 0. ``"raise"``: the run stops, and the error names the
        sample. ``"skip"``: it is left out, and later rows move up: row i of the pool is the i-th sample that was
        not skipped. Ids stay with their rows, and are the samples' numbers if there are no others. What was
        skipped, and why, is in the pool: :attr:`Embeddings.skipped`.
    revision
        A text that stands for the content of model, dataset and functions in place of what is compared
        otherwise; for datasets whose samples differ from one reading to the next, or to be sure.
    overwrite
        Whether a pool at ``dest`` may be replaced; it is, once the new one is whole.
    chunk_rows
        Rows in a chunk, the unit of work and of resuming; None: chunks of 2 to 64 MiB, by the size of the pool.

    Returns
    -------
    Embeddings
        The open pool.

    Raises
    ------
    FileExistsError
        If something is at ``dest`` and ``overwrite`` is False.
    ImportError
        If torch is asked for (``autocast``, ``device="cuda"``, a torch module on a worker) and missing.
    TypeError, ValueError
        For arguments or samples that cannot be used.
    daskcurate.EmbeddingError
        If the model fails for a batch, and not because of one of its samples.

    Warns
    -----
    UserWarning
        If ``normalize`` is None and the rows are not of unit length, or if samples were skipped.
    """
    config = EmbedConfig(
        batch_size=batch_size, device=device, autocast=autocast, normalize=normalize, dtype=dtype,
        on_error=on_error, chunk_rows=chunk_rows, revision=revision,
    )  # fmt: skip
    url = as_url(dest, "dest")
    _check(model, dataset, config, overwrite, collate=collate, sort_by=sort_by)
    parts = Parts(dataset, collate, sort_by, _getter(id_of))
    if ids is not None and id_of is not None:
        raise ValueError("ids with id_of is not allowed: give one of them")
    if not makes_dataset(dataset):
        _open_ids(ids, len(dataset.dataset if is_loader(dataset) else dataset))
    pool.check_dest(url, overwrite)
    token = os.urandom(4).hex()
    job = Job(f"{url}{pool.PARTIAL}/job-{token}", token, config, config.device)
    try:
        make_folder(job.folder)
        save(job, model, parts)
        probed = _probed(job)
        job = replace(
            job, device=probed.device, width=probed.width, dtype=config.dtype or probed.dtype,
            text_ids=probed.text_ids,
        )  # fmt: skip
        _run(url, job, probed, ids, id_of is not None, overwrite)
    finally:
        discard(job.folder)
        with contextlib.suppress(OSError):  # where there are chunks to go on with
            os.rmdir(url + pool.PARTIAL)
        _forget(token)
    return open_embeddings(url)


def _check(model: Any, dataset: Any, config: EmbedConfig, overwrite: Any, **functions: Any) -> None:
    """Raise for arguments that cannot be used, as far as can be told without a worker."""
    check_flag("overwrite", overwrite)
    if config.needs_torch is not None:
        torch_tools.require_torch(config.needs_torch)
    if not callable(model):
        raise TypeError(
            f"model of type {type(model).__name__} is not allowed: give a torch module, a function of a batch, or "
            "a function without arguments that makes one of these"
        )
    if config.needs_torch is not None and not (torch_tools.is_module(model) or is_factory(model)):
        raise TypeError(
            f"{config.needs_torch} is not allowed with a model of type {type(model).__name__}: it is for torch "
            "modules, and other callables see to that themselves"
        )
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name}={function!r} is not allowed: give a function or None")
    if not makes_dataset(dataset):
        require_dataset(dataset)


def _getter(id_of: Any) -> Callable[[Any], Any] | None:
    """Return ``id_of`` as a function of a sample."""
    if id_of is None or callable(id_of):
        return id_of
    if isinstance(id_of, str | int) and not isinstance(id_of, bool):
        return partial(_item, id_of)
    raise TypeError(
        f"id_of={id_of!r} is not allowed: give a function of a sample, a key, a position, or None"
    )


def _item(key: str | int, sample: Any) -> Any:
    return sample[key]


def _open_ids(ids: Any, n: int) -> RowReader | None:
    rows = RowReader("the dataset", (n, 1), np.float32)
    return open_ids(ids, Opened(rows, "array"), Options())


def _probed(job: Job) -> Probed:
    try:
        return run_tasks([dask.delayed(probe, pure=False)(job, dask_key_name=f"embed-probe-{job.token}")])[0]
    except BrokenSample as broken:
        raise _described(broken, None) from None


def _forget(token: str) -> None:
    """Let the workers, and this process, let go of the model."""
    forget(token)
    client = current_client()
    if client is not None:
        with contextlib.suppress(Exception):  # the error that led here matters more
            client.run(forget, token)


def _run(url: str, job: Job, probed: Probed, ids: Any, with_sample_ids: bool, overwrite: bool) -> None:
    """Write the chunks that are missing, and put the pool in its place."""
    config, n, width = job.config, probed.n, probed.width
    id_source = _open_ids(ids, n)
    chunk_rows = config.chunk_rows or chunk_rows_for(n, width, np.dtype(job.dtype).itemsize)
    plan = pool.PoolPlan(
        url, (n, width), job.dtype, min(chunk_rows, n), config.normalize is True,
        text_ids=job.text_ids if id_source is None else is_text(id_source),
    )  # fmt: skip
    known = _run_digest(plan, job, probed, ids, id_source)
    plan = replace(plan, run=known or os.urandom(8).hex())
    pool.recover(url, (plan.place, job.folder.rsplit("/", 1)[-1]))
    pool.check_dest(url, overwrite)
    try:
        _write_pool(plan, job, probed, id_source, with_sample_ids)
    except BaseException:
        if known is None:  # nobody could go on with it
            pool.give_up(plan)
        raise


def _write_pool(
    plan: pool.PoolPlan, job: Job, probed: Probed, id_source: RowReader | None, with_sample_ids: bool
) -> None:
    """Write what is missing of the pool, put it in its place, and warn of what is odd about it."""
    config, n = job.config, probed.n
    with job_progress("embed") as report:
        with_ids = with_sample_ids or id_source is not None
        pool.create(plan, with_ids, keep_ids=with_sample_ids)
        ids_digest = None if id_source is None else pool.write_ids(plan, id_source)
        written = _write(plan, job, n, id_source, report)
        dropped = dropped_rows(plan, written)
        if with_sample_ids:
            _require_unique(plan, written, dropped)
            ids_digest = digest([item.ids_digest for item in written])
        digests = [item.digest for item in written]
        low, high = min(item.low for item in written), max(item.high for item in written)
        first = next((chunk[0] for chunk in chunks_with_skipped(plan, written)), None)
        if first is not None:
            if len(dropped) == n:
                raise ValueError(f"all {n:,} samples are broken; the first: {_text(first)}")
            plan, digests, ids_digest = _without(plan, written, dropped, with_ids, report)
        normalized = plan.normalize or is_unit(low, high, plan.dtype)
        fingerprint = digest(list(plan.shape), plan.dtype, plan.chunk_rows, digests, ids_digest)
        pool.commit(
            plan,
            {
                "normalized": normalized, "fingerprint": fingerprint, "source": probed.name,
                "embedding": {
                    **config.as_dict(), "device": job.device, "content": probed.content, "samples": n,
                    "skipped": len(dropped),
                },
            },
        )  # fmt: skip
    if first is not None:
        warn_user(
            f"{len(dropped):,} of {n:,} samples were skipped; the first: {_text(first)}. "
            "Embeddings.skipped has all of them"
        )
    if not normalized and config.normalize is None:
        warn_of_norms(f"norms of the rows of {probed.name} are from {low:.4g} to {high:.4g}")


def _run_digest(
    plan: pool.PoolPlan, job: Job, probed: Probed, ids: Any, id_source: RowReader | None
) -> str | None:
    """Return what identifies a run; None, so that nothing is ever taken over, where ids may change unnoticed."""
    found_ids = ids_state(ids, id_source)
    if found_ids is None:
        return None
    config = job.config
    settings = [config.batch_size, job.device, config.autocast, config.revision, plan.dtype, plan.chunk_rows]
    settings += [plan.normalize, plan.text_ids]
    return digest("embed", VERSION, list(plan.shape), settings, probed.content, found_ids)[:16]


def _write(
    plan: pool.PoolPlan, job: Job, n: int, id_source: RowReader | None, report: Report
) -> list[Written]:
    chunks = ChunkJob("embed", n, plan.chunk_rows, plan.token, plan.markers, stop_early=True)
    recall = partial(recall_block, plan, job.config.on_error == "skip")
    try:
        return write_chunks(chunks, partial(write_block, plan), EmbeddedRows(job, n), report, recall)
    except BrokenSample as broken:
        raise _described(broken, id_source) from None


def _described(broken: BrokenSample, id_source: RowReader | None) -> ValueError:
    found = broken.id
    if found is None and id_source is not None:
        found = _plain(id_source.read(broken.row, broken.row + 1)[0])
    item = Skipped(broken.row, found, broken.reason)
    return ValueError(f"{_text(item)}. Mend it, or give on_error='skip' to leave such samples out")


def _text(item: Skipped) -> str:
    named = "" if item.id is None else f" (id {item.id!r})"
    return f"sample {item.row}{named}: {item.reason}"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return int(value) if isinstance(value, np.integer) else str(value)


def _require_unique(plan: pool.PoolPlan, written: list[Written], dropped: np.ndarray) -> None:
    """Raise if the ids of two samples that are kept are the same."""
    hashes = np.delete(np.concatenate([item.hashes for item in written if item.hashes is not None]), dropped)
    places = KeptRows(NumberRows("the dataset", plan.shape[0]), dropped)
    stored = KeptRows(_stored_ids(plan), dropped)
    require_unique(hashes, places, lambda row: _plain(stored.read(row, row + 1)[0]))


def _stored_ids(plan: pool.PoolPlan) -> RowReader:
    return ZarrRows(open_zarr(plan.partial)[IDS], "the dataset")  # type: ignore[index, arg-type]


def _without(
    plan: pool.PoolPlan, written: list[Written], dropped: np.ndarray, with_ids: bool, report: Report
) -> tuple[pool.PoolPlan, list[str], str]:
    """Write the pool anew without the samples that were skipped; return its plan and digests."""
    rows = PoolReader(PoolRows(plan.partial, plan.shape, plan.dtype, plan.chunk_rows), "the dataset")
    source = KeptRows(rows, dropped)
    n = len(source)
    ids = KeptRows(_stored_ids(plan) if with_ids else NumberRows("the dataset", plan.shape[0]), dropped)
    content = digest([item.digest for item in written], xxhash.xxh3_128_hexdigest(dropped.data))
    kept = replace(
        plan, shape=(n, plan.shape[1]), chunk_rows=min(plan.chunk_rows, n), token=os.urandom(4).hex(),
        normalize=False,  # they are scaled already, if they are to be
        run=f"{plan.run}-{content[:8]}",
    )  # fmt: skip
    pool.create(kept, True)
    ids_digest = pool.write_ids(kept, ids, unique=False)
    digests, _, _ = pool.write_rows(kept, source, report, label="without skipped samples")
    stored = _stored_ids(plan) if with_ids else None

    def id_text(item: Skipped) -> str:
        if stored is None:
            return str(item.row)
        return str(item.id if item.id is not None else _plain(stored.read(item.row, item.row + 1)[0]))

    write_skipped(kept, len(dropped), chunks_with_skipped(plan, written), id_text)
    return replace(kept, normalize=plan.normalize), digests, ids_digest
