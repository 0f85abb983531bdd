"""One fit of k-means: seeding, restarts and the loop that the size and the algorithm call for."""

from typing import Any

import numpy as np

from daskcurate.config import KMeansConfig
from daskcurate.device import on_device
from daskcurate.fast_loop import iterate_fast
from daskcurate.kernels import lloyd
from daskcurate.kernels.assign import Scorer
from daskcurate.kernels.draws import derive_seed
from daskcurate.lloyd_loop import assigned_block, iterate_lloyd, read_centroids, scorer_task
from daskcurate.rows import Block, RowBlocks
from daskcurate.seeds import seed_centroids
from daskcurate.store import write_scratch

LOCAL_BYTES = 32 << 20
"""Rows up to this size (float32) may be clustered whole in one task ..."""
LOCAL_OPERATIONS = 4_000_000_000
"""... if one iteration is also no more work than this: rounds over the cluster would take longer."""


def fits_one_task(blocks: RowBlocks, k: int) -> bool:
    """Return whether one task clusters the rows faster than rounds over the cluster would."""
    return blocks.nbytes <= LOCAL_BYTES and 2 * len(blocks) * k * (blocks.dim + 8) <= LOCAL_OPERATIONS


def fit(
    run: Any,
    blocks: RowBlocks,
    k: int,
    config: KMeansConfig,
    step: int,
    base: str | None,
    given: np.ndarray | None,
    share: tuple[float, float],
    what: str,
) -> str:
    """Run k-means from scratch on ``blocks``; return the name of the scratch array of the best centroids.

    Parameters
    ----------
    step
        0 for the initial k-means, then the number of the resampling step.
    base
        Scratch array of the last finished step: kept in the checkpoint, so that a resumed run has it.
    share
        Start and length of this fit in the stage's progress, as fractions.
    what
        What the progress display says before "iteration".
    """
    best, best_inertia = "", np.inf
    saved = run.checkpoint
    resumed = saved if saved.get("step") == step and "restart" in saved else {}
    if resumed:
        best, best_inertia = resumed["best"], resumed["best_inertia"] if resumed["best"] else np.inf
    local = fits_one_task(blocks, k)
    for restart in range(int(resumed.get("restart", 0)), config.n_init):
        name = f"s{step}-r{restart}"
        state = {
            "step": step,
            "base": base,
            "restart": restart,
            "best": best,
            "best_inertia": _json(best_inertia),
        }
        seed = derive_seed(config.seed, "kmeans", k, step, restart)
        progress = (share[0] + share[1] * restart / config.n_init, share[1] / config.n_init)
        if resumed.get("restart") == restart and "iteration" in resumed:
            found = _iterate(run, blocks, config, name, state, resumed, seed, progress, what)
        else:
            run.note(progress[0], f"{what}seeding")
            fast = config.algorithm != "lloyd" and not local
            seeds = seed_centroids(run, blocks, k, config, seed, f"{name}-seeds", given, two_level=fast)
            if local:
                found = _fit_local(run, blocks, config, seeds, name)
            else:
                start = {"iteration": 0, "current": seeds, "previous": None}
                found = _iterate(run, blocks, config, name, state, start, seed, progress, what)
        if config.n_init == 1:
            return found
        inertia = _inertia(run, blocks, found, config.metric)
        if inertia < best_inertia:
            best, best_inertia = found, inertia
        run.save(step=step, base=base, restart=restart + 1, best=best, best_inertia=_json(best_inertia))
    return best


def _iterate(
    run: Any,
    blocks: RowBlocks,
    config: KMeansConfig,
    name: str,
    state: dict[str, Any],
    start: dict[str, Any],
    seed: int,
    progress: tuple[float, float],
    what: str,
) -> str:
    """Run the loop of the configured algorithm over the cluster; return the last centroids' scratch name."""

    def note(fraction: float, text: str) -> None:
        run.note(progress[0] + progress[1] * fraction, f"{what}{text}")

    if config.algorithm == "lloyd":
        return iterate_lloyd(run, blocks, config, name, state, start, note)
    return iterate_fast(run, blocks, config, name, state, start, seed, note)


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _fit_local(run: Any, blocks: RowBlocks, config: KMeansConfig, seeds: str, name: str) -> str:
    """Run Lloyd's whole loop in one task."""
    fitted = run.task(
        _lloyd_whole, list(blocks.blocks), run.scratch(seeds), config.metric, config.n_iters, config.tol,
        run.scratch(name), name="kmeans-whole", key=name,
    )  # fmt: skip
    run.gather([fitted], "k-means in one task")
    return name


def _lloyd_whole(blocks: list[Block], seeds: str, metric: str, n_iters: int, tol: Any, url: str) -> int:
    found = on_device(lloyd.lloyd)(
        [block.rows for block in blocks], read_centroids(seeds), metric, n_iters, tol
    )
    write_scratch(url, found.centroids)
    return found.n_updates


def _inertia(run: Any, blocks: RowBlocks, name: str, metric: str) -> float:
    """Return the inertia of ``blocks`` with the centroids of scratch array ``name``."""
    scorer = scorer_task(run, name, metric)
    parts = blocks.map(run, _block_inertia, scorer, blocks.name, name="kmeans-inertia", key=name)
    return float(np.sum(run.gather(parts, "inertia")))


def _block_inertia(block: Block, scorer: Scorer, rows_name: str) -> float:
    return assigned_block(block, scorer, rows_name).inertia
