"""Image embeddings: a pool of images, by a network that is defined here.

Reads a folder of image files, an array of pixels (``images.npy``: n, height, width and, if in colour, 3), or, as
an example that needs no data, the handwritten digits of scikit-learn:

    python -m pipelines.embed_images digits pool.zarr
    python -m pipelines.embed_images photos/ pool.zarr --skip-broken

It needs ``pip install 'daskcurate[torch]'``; for files pillow, for the digits scikit-learn. Change first:
``make_model``. The network has fixed random filters and never saw an image: edges and their places make near-copies
close and unlike shapes distant, which is enough to try things out, and no more. Put your own encoder in its place
(DINOv2, CLIP), and the size and range of pixels that it expects into ``Images``.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from daskcurate.io.paths import list_folder
from pipelines.common import EmbeddingRecipe

SIDE = 32
WIDTH = 256
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Images:
    """Images as arrays (3, SIDE, SIDE) of float32 from 0 to 1, with a name each.

    Parameters
    ----------
    source
        A folder, a file .npy, or ``digits``.
    """

    def __init__(self, source: str):
        self.source = source
        self.files: list[str] = []
        self.pixels: Any = None
        if source == "digits":
            from sklearn.datasets import load_digits

            self.pixels, self.largest = load_digits().images.astype(np.float32), 16.0
        elif source.endswith(".npy"):
            self.pixels = np.load(source, mmap_mode="r")
            self.largest = 255.0 if self.pixels.dtype.kind in "iu" else 1.0
            if self.pixels.ndim not in (3, 4) or (self.pixels.ndim == 4 and self.pixels.shape[3] != 3):
                raise ValueError(
                    f"{source} has shape {self.pixels.shape}: give (n, height, width) or (..., 3)"
                )
        else:
            self.files = [name for name in list_folder(source) if name.lower().endswith(SUFFIXES)]

    def __len__(self) -> int:
        return len(self.files) if self.pixels is None else len(self.pixels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if self.pixels is not None:
            return {"name": f"image-{row}", "pixels": resized(self.pixels[row] / self.largest)}
        from PIL import Image

        with Image.open(self.files[row]) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG: decoded at a fraction of its size
            pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), np.float32) / 255
        return {"name": Path(self.files[row]).name, "pixels": np.ascontiguousarray(pixels.transpose(2, 0, 1))}


def resized(pixels: np.ndarray) -> np.ndarray:
    """Return (height, width) or (height, width, 3) as (3, SIDE, SIDE)."""
    import torch

    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    batch = torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1), np.float32))[None]
    size = (SIDE, SIDE)
    return torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)[0].numpy()


def stack(samples: list[dict[str, Any]]) -> Any:
    """Return a batch of pixels."""
    import torch

    return torch.from_numpy(np.stack([sample["pixels"] for sample in samples]))


def make_model(seed: int) -> Any:
    """Return the network: two layers of random filters, means over a grid, and a projection to WIDTH."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(8),
            nn.InstanceNorm2d(64),  # what an image has everywhere says little about it
            nn.Flatten(), nn.Linear(64 * 8 * 8, WIDTH, bias=False),
        )  # fmt: skip
    return model


def build(given: argparse.Namespace) -> dict[str, Any]:
    """Return what is embedded, and by what."""
    source = given.images
    if source != "digits":
        path = Path(source).absolute()
        if not (path.is_dir() or (path.suffix == ".npy" and path.exists())):
            raise FileNotFoundError(
                f"images {source!r}: give a folder, a file .npy that is there, or 'digits'"
            )
        source = str(path)
    return {
        "model": partial(make_model, given.seed),
        "dataset": partial(Images, source),
        "collate": stack,
        "id_of": "name",
        "normalize": True,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe's own options."""
    add = parser.add_argument
    add("images", help="a folder of images, a file .npy, or 'digits'")
    add("dest", help="the pool to make")
    add("--seed", type=int, default=0, help="of the random filters")


RECIPE = EmbeddingRecipe(build, add_arguments)

if __name__ == "__main__":
    RECIPE.main()
