"""The report of a run: what its store holds, gathered into one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from daskcurate.config import check_flag, check_int
from daskcurate.io.paths import is_local
from daskcurate.report.context import RunContext
from daskcurate.report.page import Page, checked_dest, require_extra, write_page
from daskcurate.report.sections import (
    cluster_sections,
    dedup_sections,
    duration,
    map_section,
    members_section,
    prune_section,
    stages_section,
)
from daskcurate.report.stages import StoredRun
from daskcurate.store import as_url


def write_report(
    store: Any,
    dest: Any = None,
    *,
    embeddings: Any = None,
    texts: Any = None,
    images: Any = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a folder with a page about a run: figures, pictures and galleries. No network is needed to read it.

    Parameters
    ----------
    store
        The run store.
    dest
        Folder to write; None: beside the store, named after it (``run-report`` for ``run.zarr``).
    embeddings
        The pool, or its path; None: where it was when the stages ran. Without a pool there is no map and no id.
    texts
        A text for every row: ``file.parquet:column``, a .txt file, a .npy file, or a list.
    images
        An image for every row: ``file.parquet:column`` of paths or encoded images, a .txt file of paths, a
        .npy or zarr array of pixels (n, height, width[, channels]), or such an array.
    seed
        Keys what is drawn: the map's rows, and which clusters' points are shown.
    overwrite
        Put the report into a folder that holds something else.

    Returns
    -------
    Path
        The page, ``index.html``.

    Raises
    ------
    FileExistsError
        ``dest`` is a folder that is not a report.
    ImportError
        The extra ``report`` is not installed.
    ValueError, TypeError
        ``store`` is not a run store, the pool is another one, or texts or images are not one a row.
    """
    require_extra()
    seed = check_int("seed", seed, 0)
    check_flag("overwrite", overwrite)
    if dest is None:
        url = as_url(store)
        if not is_local(url):
            raise ValueError(f"dest=None is not allowed for the store {url}: give a local folder")
        dest = f"{os.path.splitext(url)[0]}-report"
    path = checked_dest(dest, overwrite)
    context = RunContext(StoredRun.read(store), as_url(store), seed)
    context.open_pool(embeddings)
    items = context.open_items(
        texts, images
    )  # what is not allowed is said before anything is read or written
    return write_page(_page(context), items, path)


def _page(context: RunContext) -> Page:
    """Gather everything."""
    sections = [stages_section(context), *cluster_sections(context)]
    dedup, doubles = dedup_sections(context)
    sections += [dedup, prune_section(context), map_section(context), doubles, members_section(context)]
    rows = "" if context.n_rows is None else f"{context.n_rows:,} rows"
    width = "" if context.emb is None else f" of {context.emb.dim} numbers, {context.emb.path}"
    return Page(
        title=f"Curation report: {context.url.rpartition('/')[2]}",
        subtitle=f"{rows}{width}" or "No stage has finished yet.",
        tiles=_tiles(context),
        notes=list(dict.fromkeys(context.notes)),
        sections=sections,
        figures={"store": context.url, "rows": context.n_rows, **context.figures},
    )


def _tiles(context: RunContext) -> list[tuple[str, str]]:
    """Return the figures at the top."""
    found: list[tuple[str, str]] = []
    if context.n_rows is not None:
        found.append(("rows in the pool", f"{context.n_rows:,}"))
    for stage in context.run.before(context.final).values() if context.final else ():
        if stage.kind == "semantic_dedup" and stage.complete:
            gone, rows = stage.attributes.get("duplicates", 0), stage.attributes.get("rows_in", 0)
            found.append((f"duplicates ({gone / max(1, rows):.1%} of the rows compared)", f"{gone:,}"))
    if context.final is not None:
        total = int(context.final.attributes.get("total", 0))
        share = total / max(1, context.n_rows or 1)
        found.append((f"rows in the result: {context.run.title(context.final)}", f"{total:,} ({share:.1%})"))
    seconds = sum(float(stage.attributes.get("seconds", 0)) for stage in context.run.finished)
    return [*found, ("all stages together", f"{duration(seconds)}")]
