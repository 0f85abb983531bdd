"""The rows of a pool in their leading directions: found, and kept on the workers where there is room."""

import dataclasses
from typing import Any

import numpy as np

from daskcurate.arrays import Array
from daskcurate.device import on_device
from daskcurate.kernels.draws import derive_seed
from daskcurate.kernels.leading import SAMPLE_ROWS, Directions, Leading, leading_directions, project
from daskcurate.rows import Block, Narrow, NarrowBlock, RowBlocks, drawn_rows, keep_if_small
from daskcurate.store import read_block, write_scratch

NAME = "directions"
"""Scratch array of a stage's directions."""


def with_directions(run: Any, blocks: RowBlocks, seed: int, width: int | None) -> RowBlocks:
    """Return the blocks with their rows in the leading directions, or as they are where that would not pay.

    Parameters
    ----------
    width
        How many directions an interrupted run found, which are read again; None: they are to be found.
    """
    if width is None:
        count = min(len(blocks), SAMPLE_ROWS * blocks.dim)
        sample = drawn_rows(run, blocks, count, derive_seed(seed, "directions"), NAME)
        found = run.task(_find, sample, run.scratch(NAME), name="kmeans-directions")
        width = run.gather([found], "directions")[0]
    return narrowed(run, blocks, run.scratch(NAME), width, "rows") if width else blocks


def narrowed(run: Any, blocks: RowBlocks, directions: str, width: int, key: str) -> RowBlocks:
    """Return the blocks with their rows in the ``directions`` (a URL), of which there are ``width``.

    ``key`` tells the tasks from those that bring other rows there.
    """
    lazy = blocks.map(run, _narrow, directions, name="kmeans-narrow", key=key)
    rows = dataclasses.replace(blocks, blocks=lazy, dim=width, name=f"{blocks.name}-narrow", reading=None)
    rows = keep_if_small(run, rows)
    is_held = rows.held > blocks.held
    return dataclasses.replace(blocks, narrow=Narrow(rows, directions, is_held), held=rows.held)


def _find(sample: list[Block], url: str) -> int:
    found = _directions_of(np.concatenate([block.rows for block in sample]))
    write_scratch(url, found)
    return len(found) - 1


@on_device
def _directions_of(rows: Array) -> Array:
    return leading_directions(rows)


def _narrow(block: Block, url: str) -> NarrowBlock:
    return NarrowBlock(block.numbers, *_projected(block.rows, read_block(url, 0, 2**62)))


@on_device
def _projected(rows: Array, directions: Array) -> Leading:
    return project(rows, Directions.of_table(directions))
