"""Reading results in this process, a block at a time."""

from collections.abc import Iterator

import dask.array as da
import numpy as np


def blocks_of(array: da.Array) -> Iterator[np.ndarray]:
    """Yield the blocks of a one-dimensional dask array, one in memory at a time."""
    for block in array.blocks:
        yield np.asarray(block.compute(scheduler="synchronous"))
