"""How many rows each cluster gives: balanced sampling down a hierarchy, and density-based pruning.

Only cluster sizes come in, never lists of rows. Host arrays by design: there is one number a cluster, from loops
that share out what the last step left, and nothing that a device would do faster than the copy to it takes.
"""

from collections.abc import Sequence

import numpy as np

from daskcurate.kernels.draws import derive_seed, row_hash

_LARGEST_TARGET = 2**58  # sums of cut capacities stay below target * (ln k + 2), so within int64


def water_level_cut(capacities: np.ndarray, target: int, keys: np.ndarray) -> np.ndarray:
    """Share ``target`` rows over clusters as evenly as their capacities allow.

    Every cluster gets min(x, capacity) for the largest whole x that does not exceed the target; what is
    left goes one row each to the clusters with the smallest keys among those with more than x.

    Parameters
    ----------
    capacities
        int64 (k,), rows each cluster can give at most.
    target
        Rows to share, at most 2^58.
    keys
        (k,), random and distinct, :func:`~daskcurate.kernels.draws.row_hash` of the cluster numbers, say.

    Returns
    -------
    numpy.ndarray
        int64 (k,), summing to min(target, sum of capacities).

    Notes
    -----
    Vo et al. 2024 (arXiv 2405.15613), hierarchical balanced sampling; O(k log k).
    """
    owners = np.zeros(len(capacities), np.int64)
    return _cut_each(owners, capacities, np.array([target], np.int64), keys)


def _cut_each(
    owners: np.ndarray, capacities: np.ndarray, targets: np.ndarray, keys: np.ndarray
) -> np.ndarray:
    """Do :func:`water_level_cut` for every parent at once: children ``owners == p`` share ``targets[p]``."""
    if len(targets) and not 0 <= targets.min() <= targets.max() <= _LARGEST_TARGET:
        raise ValueError(
            f"targets from {targets.min()} to {targets.max()}: allowed are 0 to {_LARGEST_TARGET}"
        )
    order = np.lexsort((capacities, owners))
    owner, capacity = owners[order], capacities[order]
    counts = np.bincount(owner, minlength=len(targets))
    starts = np.cumsum(counts) - counts
    target = targets[owner]
    remaining = (starts + counts)[owner] - np.arange(len(owner))  # children no smaller than this one, with it

    # Filling all children to this one's capacity takes what the smaller ones hold plus capacity * remaining.
    # Where the latter alone is over the target, leave the numbers out before they can overflow.
    over = np.cumsum(capacity > target // remaining)
    known = over == _before(over, starts, counts)[owner]
    bounded = np.where(known, capacity, 0)
    held = np.cumsum(bounded)  # may wrap over all parents together; differences within one are right
    smaller = held - bounded - _before(held, starts, counts)[owner]
    full = known & (smaller + bounded * remaining <= target)

    n_full = np.bincount(owner[full], minlength=len(targets))
    in_full = np.zeros(len(targets), np.int64)
    np.add.at(in_full, owner[full], capacity[full])
    n_open = counts - n_full
    level, spare = np.divmod(targets - in_full, np.maximum(n_open, 1))
    given = np.where(full, capacity, level[owner])

    # Every child that is not full has room for one more.
    is_lucky = np.flatnonzero(~full & (spare[owner] > 0))
    is_lucky = is_lucky[np.lexsort((keys[order[is_lucky]], owner[is_lucky]))]
    per_owner = np.bincount(owner[is_lucky], minlength=len(targets))
    rank = np.arange(len(is_lucky)) - (np.cumsum(per_owner) - per_owner)[owner[is_lucky]]
    given[is_lucky[rank < spare[owner[is_lucky]]]] += 1

    result = np.empty(len(owner), np.int64)
    result[order] = given
    return result


def _before(running: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the running sum just before each parent's first child (0 for parents without children)."""
    before = np.zeros(len(starts), running.dtype)
    inner = (starts > 0) & (counts > 0)
    before[inner] = running[starts[inner] - 1]
    return before


def hierarchical_targets(
    parents: Sequence[np.ndarray], flat_sizes_1: np.ndarray, target: int, multiplier: int, seed: int
) -> np.ndarray:
    """Return how many rows each level-1 cluster gives to a balanced sample of ``target`` rows.

    Parameters
    ----------
    parents
        ``parents[t-1]`` is int (k_t,): the cluster at level t+1 that cluster j of level t lies in, or -1
        for none (it then gives no rows). Empty for a flat clustering.
    flat_sizes_1
        int64 (k_1,), rows of each level-1 cluster.
    target
        Rows wanted, repeats counted.
    multiplier
        How often a row may be taken at most.
    seed
        Decides which clusters get the rows that do not divide evenly.

    Returns
    -------
    numpy.ndarray
        int64 (k_1,), at most ``multiplier * flat_sizes_1``, summing to the target or to all there is.

    Notes
    -----
    Vo et al. 2024 (arXiv 2405.15613), hierarchical balanced sampling; O(k_t log k_t) a level.
    """
    sizes = [np.asarray(flat_sizes_1, np.int64)]
    for level, parent in enumerate(parents, 1):
        n_above = len(parents[level]) if level < len(parents) else int(parent.max(initial=-1)) + 1
        above = np.zeros(n_above, np.int64)
        inside = parent >= 0
        np.add.at(above, parent[inside], sizes[-1][inside])
        sizes.append(above)

    wanted = np.array([target], np.int64)
    for level in range(len(sizes), 0, -1):
        size = sizes[level - 1]
        # Rows beyond the target cannot be used: cut there, before the product can overflow.
        capacity = np.where(size > target // multiplier, target, size * multiplier)
        keys = row_hash(derive_seed(seed, "cut", level), np.arange(len(size)))
        parent = parents[level - 1] if level < len(sizes) else np.zeros(len(size), np.int64)
        below = np.flatnonzero(parent >= 0)
        given = np.zeros(len(size), np.int64)
        given[below] = _cut_each(parent[below], capacity[below], wanted, keys[below])
        wanted = given
    return wanted


def softmax_shares(complexity: np.ndarray, temperature: float, sizes: np.ndarray) -> np.ndarray:
    """Return the share of the kept rows that each cluster should have: softmax(complexity / temperature).

    Parameters
    ----------
    complexity
        float64 (k,); not read (so NaN is fine) where the cluster is empty.
    temperature
        tau > 0; the smaller, the more the complex clusters get.
    sizes
        int64 (k,), rows of each cluster.

    Returns
    -------
    numpy.ndarray
        float64 (k,), summing to 1; 0 for empty clusters.

    Notes
    -----
    Abbas et al. 2024 (arXiv 2401.04578), density-based pruning.
    """
    shares = np.zeros(len(sizes))
    present = sizes > 0
    if present.any():
        inside = np.asarray(complexity, np.float64)[present]
        weights = np.exp((inside - inside.max()) / temperature)
        shares[present] = weights / weights.sum()
    return shares


def bounded_allocation(shares: np.ndarray, target: int, sizes: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the whole numbers of rows nearest to ``shares * target`` that fit the clusters and the target.

    Minimises |x - shares * target|^2 subject to sum x = target and lower <= x <= sizes. The solution in
    real numbers is x = clip(shares * target + lam, lower, sizes), with lam between two break points of
    that sum; it is then rounded by largest remainder (ties: the lower cluster number first).

    Parameters
    ----------
    shares
        float64 (k,).
    target
        Rows to keep.
    sizes, lower
        int64 (k,), most and fewest rows of each cluster.

    Returns
    -------
    numpy.ndarray
        int64 (k,), summing to ``target`` exactly.

    Raises
    ------
    ValueError
        If a bound is crossed, or the target is below the sum of ``lower`` or above that of ``sizes``.

    Notes
    -----
    The quadratic program of Abbas et al. 2024 (arXiv 2401.04578), solved exactly.
    """
    if (lower > sizes).any():
        j = int(np.argmax(lower > sizes))
        raise ValueError(f"lower bound {lower[j]} of cluster {j} is above its size {sizes[j]}")
    fewest, most = int(lower.sum()), int(sizes.sum())
    if not fewest <= target <= most:
        raise ValueError(f"target={target} is out of reach: give {fewest} (lower bounds) to {most} (sizes)")
    wished = np.asarray(shares, np.float64) * target
    low, high = lower.astype(np.float64), sizes.astype(np.float64)
    real = np.clip(wished + _shift(wished, target, low, high), low, high)
    return _round_to(real, target, lower, sizes)


def _shift(wished: np.ndarray, target: int, low: np.ndarray, high: np.ndarray) -> float:
    """Return lam with sum clip(wished + lam, low, high) = target, by halving the set of break points."""
    rises, stops = low - wished, high - wished
    breaks = np.concatenate([rises, stops])
    if not len(breaks):
        return 0.0

    def total(lam: float) -> float:
        return float(np.clip(wished + lam, low, high).sum())

    at = breaks.min()  # the largest break point found so far where the sum is not over the target
    while len(breaks):
        middle = np.partition(breaks, len(breaks) // 2)[len(breaks) // 2]
        if total(middle) <= target:
            at = max(at, middle)
            breaks = breaks[breaks > middle]
        else:
            breaks = breaks[breaks < middle]
    moving = np.count_nonzero((rises <= at) & (stops > at))  # the slope of the sum right of the break
    return float(at + (target - total(at)) / moving) if moving else float(at)


def _round_to(real: np.ndarray, target: int, lower: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Round to whole numbers within the bounds that sum to ``target``, largest remainders up first."""
    whole = np.floor(real).astype(np.int64)
    remainder = real - whole
    # Once round, save that float error in the sum of huge targets may leave some more to move.
    while rest := target - int(whole.sum()):
        if rest > 0:
            movable = np.flatnonzero(whole < sizes)
            order = np.argsort(-remainder[movable], kind="stable")
        else:
            movable = np.flatnonzero(whole > lower)
            order = np.argsort(remainder[movable], kind="stable")
        whole[movable[order[: abs(rest)]]] += np.sign(rest)
    return whole


def copies(
    rank: np.ndarray, rows_in_cluster: np.ndarray, targets: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return how often each row is taken when its cluster gives ``targets`` rows.

    Parameters
    ----------
    rank
        int64 (n,), place of the row in the order of its cluster, from 0.
    rows_in_cluster, targets
        int64 (k,), rows each cluster has, and rows it is to give.
    labels
        int32 (n,), cluster of each row; -1: none, the row is not taken.

    Returns
    -------
    numpy.ndarray
        int32 (n,): t // s times every row of a cluster of s rows asked for t, once more the first t mod s.
    """
    whole, extra = np.divmod(targets, np.maximum(rows_in_cluster, 1))
    counts = np.zeros(len(labels), np.int32)
    inside = labels >= 0
    own = labels[inside]
    counts[inside] = whole[own] + (rank[inside] < extra[own])
    return counts
