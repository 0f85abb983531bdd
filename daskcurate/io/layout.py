"""How a pool is cut into chunks: integers only."""

MIB = 1 << 20
TARGET_BYTES = 64 * MIB
FLOOR_BYTES = 2 * MIB
MIN_CHUNKS = 32


def chunk_rows_for(n: int, d: int, itemsize: int) -> int:
    """Return the rows per chunk of a pool of ``n`` rows of ``d`` items.

    Chunks of 64 MiB; smaller where that would give fewer than 32 chunks to work on in parallel, but not
    below 2 MiB, where the cost of a task outweighs its work.
    """
    row_bytes = d * itemsize
    share = n // MIN_CHUNKS * row_bytes
    chunk_bytes = min(TARGET_BYTES, max(FLOOR_BYTES, share))
    return max(1, min(n, chunk_bytes // row_bytes))


def chunk_bounds(n: int, chunk_rows: int) -> list[tuple[int, int]]:
    """Return the (start, stop) rows of every chunk."""
    return [(start, min(start + chunk_rows, n)) for start in range(0, n, chunk_rows)]
