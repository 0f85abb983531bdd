"""The demo's pool: handwritten digits, long-tailed, with planted near-duplicates.

Everything is made from the 1797 images of 8 x 8 pixels that scikit-learn carries, so that the demo needs no
download. Each row is one of them, bent at random: rotated, scaled, sheared, moved and warped elastically.
The bends are strong enough that two of them are not near-duplicates, and weak enough that the digit stays
legible.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskcurate.config import check_int, check_number

SIDE = 8
PAD = 4
GREY = 51
"""Pixel value that the embedding takes as zero: a fifth of white, so that cosines spread out."""
DEMO_ROWS = 24_000
DEMO_EPS = 0.02
"""Separates planted duplicates (99.7 % have cosine similarity above 1 - eps) from all other pairs.

Measured by brute force over the 288 million pairs of the default pool.
"""


@dataclass(frozen=True)
class DigitsPool:
    """A pool of images with their embeddings, and what was planted in it.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, 8, 8)
        Grey values; 0 is the background.
    embeddings : ndarray of float32, shape (n, 64)
        Unit rows, see :func:`embed`.
    ids : ndarray of str, shape (n,)
        ``digit-<class>-<row>``.
    label : ndarray of int64, shape (n,)
        The digit; class 0 is the most frequent, 9 the rarest.
    planted_duplicate_of : ndarray of int64, shape (n,)
        Row of which a row is a planted near-duplicate; -1 for originals.
    """

    images: np.ndarray
    embeddings: np.ndarray
    ids: np.ndarray
    label: np.ndarray
    planted_duplicate_of: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def embed(images: np.ndarray) -> np.ndarray:
    """Return images as unit rows: their pixels less a constant grey.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, 8, 8)
        Grey values.

    Returns
    -------
    ndarray of float32, shape (n, 64)
        Rows of length 1.
    """
    rows = images.reshape(len(images), -1).astype(np.float32) - np.float32(GREY)
    # An image that is GREY everywhere has no direction: give it that of an all-white one.
    rows[~rows.any(axis=1)] = 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_digits(n_rows: int = DEMO_ROWS, seed: int = 0, duplicate_fraction: float = 0.15) -> DigitsPool:
    """Return a long-tailed pool of digit images with planted near-duplicates, in random order.

    Parameters
    ----------
    n_rows : int
        Rows, duplicates included.
    seed : int
        The same seed gives the same pool.
    duplicate_fraction : float
        Fraction of the rows, in [0, 0.9], that repeat another row: shifted by about a ninth of a pixel, or
        with noise of 3 % of white.

    Returns
    -------
    DigitsPool
        Images, embeddings, ids, classes and the planted duplicates.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    """
    n_rows = check_int("n_rows", n_rows, 1)
    seed = check_int("seed", seed, 0)
    duplicate_fraction = check_number("duplicate_fraction", duplicate_fraction, 0, 0.9)
    base, base_label = _base_images()
    rng = np.random.default_rng(seed)
    n_copies = int(n_rows * duplicate_fraction)
    n_originals = n_rows - n_copies

    label = rng.choice(10, size=n_originals, p=_class_probabilities())
    picked = _pick_of_class(rng, base_label, label)
    points = _bend(rng, n_originals)
    contrast = rng.uniform(0.75, 1.25, n_originals)

    copied = rng.integers(0, n_originals, n_copies)
    shift, noise = _small_changes(rng, n_copies)
    source = np.concatenate([np.arange(n_originals), copied])
    points = points[source]
    points[n_originals:] += shift[:, :, None]
    images = _render(base, picked[source], points) * (contrast[source] * (255 / 20))[:, None, None]
    images[n_originals:] += noise

    order = rng.permutation(n_rows)
    row_of = np.argsort(order)
    duplicate_of = np.full(n_rows, -1, dtype=np.int64)
    duplicate_of[row_of[n_originals:]] = row_of[copied]
    images = np.clip(np.rint(images), 0, 255).astype(np.uint8)[order]
    label = label[source][order].astype(np.int64)
    return DigitsPool(
        images=images,
        embeddings=embed(images),
        ids=np.array([f"digit-{digit}-{row:06d}" for row, digit in enumerate(label)]),
        label=label,
        planted_duplicate_of=duplicate_of,
    )


def _base_images() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's images, (1797, 8, 8) from 0 to 16, and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'the digits come with scikit-learn, which is not installed: pip install "daskcurate[demo]"'
        ) from error
    bunch: Any = load_digits()
    return bunch.images, bunch.target


def _class_probabilities() -> np.ndarray:
    """Return a shifted power law over ten classes: from 43 % down to 1 %."""
    weights = np.arange(4, 14) ** -3.1
    return weights / weights.sum()


def _pick_of_class(rng: np.random.Generator, base_label: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return a random base image of each wanted class."""
    by_class = np.argsort(base_label, kind="stable")
    sizes = np.bincount(base_label, minlength=10)
    starts = np.cumsum(sizes) - sizes
    return by_class[starts[label] + (rng.random(len(label)) * sizes[label]).astype(np.int64)]


def _bend(rng: np.random.Generator, n_rows: int) -> np.ndarray:
    """Return where each pixel is read, (n, 2, 64), in pixels from the image's centre."""
    angle = np.deg2rad(rng.normal(0, 8, n_rows))
    stretch = np.exp(rng.normal(0, 0.08, (n_rows, 2)))
    shear = rng.normal(0, 0.1, n_rows)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.empty((n_rows, 2, 2))
    matrix[:, 0, 0] = cos * stretch[:, 0]
    matrix[:, 0, 1] = cos * shear - sin * stretch[:, 1]
    matrix[:, 1, 0] = sin * stretch[:, 0]
    matrix[:, 1, 1] = sin * shear + cos * stretch[:, 1]
    axis = np.arange(SIDE) - (SIDE - 1) / 2
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij")).reshape(2, -1)
    # The elastic part: random displacements of 4 x 4 knots, interpolated linearly. Its 32 dimensions are
    # what keeps thousands of variants of a few hundred images apart.
    knots = rng.normal(0, 0.5, (n_rows, 2, 4, 4))
    weights = np.maximum(0, 1 - abs(np.linspace(0, 3, SIDE)[:, None] - np.arange(4)))
    elastic = (weights @ knots @ weights.T).reshape(n_rows, 2, -1)
    return matrix @ grid + elastic + rng.normal(0, 0.35, (n_rows, 2, 1))


def _small_changes(rng: np.random.Generator, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return shifts (n, 2) in pixels and noise (n, 8, 8) in grey values; a row has the one or the other."""
    moved = rng.random(n_rows) < 0.5
    direction = rng.uniform(0, 2 * np.pi, n_rows)
    shift = 0.115 * moved[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    noise = 8 * ~moved[:, None, None] * rng.standard_normal((n_rows, SIDE, SIDE))
    return shift, noise


def _render(base: np.ndarray, picked: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return each picked base image, (n, 8, 8), read linearly at its ``points``; background outside."""
    from scipy import ndimage

    # One tall strip of padded images, so that one call reads them all.
    size = SIDE + 2 * PAD
    strip = np.pad(base, ((0, 0), (PAD, PAD), (PAD, PAD))).reshape(-1, size)
    inside = np.clip(points + (SIDE - 1) / 2, -PAD, SIDE - 1 + PAD) + PAD
    down = inside[:, 0] + picked[:, None] * size
    return ndimage.map_coordinates(strip, [down.ravel(), inside[:, 1].ravel()], order=1).reshape(
        -1, SIDE, SIDE
    )
