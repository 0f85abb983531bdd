"""The published simulations: data and measures, for the tests, the benchmarks and users' own checks."""

import numpy as np

RING_CENTRES = ((-2.2, 1.0), (0.0, 1.0), (2.2, 1.0), (-1.2, 0.2), (1.2, 0.2))
RING_SIZES = (20_000, 200, 1_000, 500, 8_000)


def mixture(seed: int) -> np.ndarray:
    """Return the 9000 points (n, 2) float32 of the 2-D simulation of Vo et al. 2024, Fig. 3."""
    rng = np.random.default_rng(seed)
    clumps = [
        rng.standard_normal((size, 2)) * 0.5 + centre
        for size, centre in ((7000, (-1, -1)), (1000, (1, -1)), (500, (0, 1)))
    ]
    return np.concatenate([*clumps, rng.uniform(-3, 3, (500, 2))]).astype(np.float32)


def rings(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (n, 2) float32 of the five rings of Vo et al. 2024, and each one's ring (n,)."""
    rng = np.random.default_rng(seed)
    points, ring = [], []
    for number, (size, centre) in enumerate(zip(RING_SIZES, RING_CENTRES, strict=True)):
        radius, angle = rng.uniform(0.7, 1, size), rng.uniform(0, 2 * np.pi, size)
        points.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + centre)
        ring.append(np.full(size, number))
    return np.concatenate(points).astype(np.float32), np.concatenate(ring)


def kl_to_uniform(points: np.ndarray, bandwidth: float = 0.5, step: float = 0.02) -> float:
    """Return the KL divergence to the uniform density on [-3, 3]^2 of a Gaussian KDE of ``points`` (m, 2).

    The density is normalised on the grid arange(-3, 3, step)^2; KL = sum p ln(36 p) step^2.
    """
    grid = np.arange(-3, 3, step)
    # a Gaussian in two dimensions is the product of one in each: two thin matrices and their product
    along = [np.exp(-0.5 * ((grid[:, None] - points[None, :, i]) / bandwidth) ** 2) for i in range(2)]
    density = along[0] @ along[1].T
    density /= density.sum() * step * step
    positive = density[density > 0]
    return float((positive * np.log(36 * positive)).sum() * step * step)
