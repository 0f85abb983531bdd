"""Rows per cluster of density-based pruning, beside a quadratic solver: ``python benchmarks/allocation.py``."""

import statistics

import numpy as np
from common import machine, options, parsed, print_table, seconds_of

from daskcurate.kernels.allocation import bounded_allocation, softmax_shares


def by_osqp(shares: np.ndarray, target: int, sizes: np.ndarray) -> np.ndarray:
    import osqp
    from scipy import sparse

    k = len(sizes)
    rows = sparse.vstack([np.ones((1, k)), sparse.eye(k)]).tocsc()
    low, high = np.r_[target, np.ones(k)], np.r_[target, sizes.astype(float)]
    solver = osqp.OSQP()
    solver.setup(sparse.eye(k).tocsc(), -shares * target, rows, low, high, verbose=False)
    return np.rint(solver.solve().x)


def main() -> None:
    cli = options(__doc__, data=False, repeats=5)
    cli.add_argument("--clusters", type=int, nargs="+", default=[6000, 50_000])
    args = parsed(cli, clusters=[6000])
    print(machine())
    rows = []
    for k in args.clusters:
        rng = np.random.default_rng(k)
        sizes = np.maximum(1, rng.pareto(1.2, k) * 500).astype(np.int64)
        target = int(sizes.sum()) // 3
        shares = softmax_shares(rng.random(k), 0.1, sizes)
        calls = {
            "daskcurate": lambda: bounded_allocation(shares, target, sizes, np.minimum(1, sizes)),  # noqa: B023
            "osqp": lambda: by_osqp(shares, target, sizes),  # noqa: B023
        }
        for name, call in calls.items():
            try:
                found = [seconds_of(call) for _ in range(args.repeats if name == "daskcurate" else 1)]
            except ImportError:
                print("osqp: not installed")
                continue
            off = int(found[-1][1].sum()) - target
            rows.append(
                (f"{k}", name, f"{1000 * statistics.median(item[0] for item in found):.1f}", f"{off}")
            )
    print_table(("clusters", "solver", "ms, median", "rows off the target"), rows)


if __name__ == "__main__":
    main()
