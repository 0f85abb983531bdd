"""Models and datasets of the embedding tests, importable by workers, and a run that kills itself."""

import os
import signal
import time
import uuid
from pathlib import Path

import dask
import numpy as np
from distributed import Client, as_completed

N, WIDTH, CHUNK, BATCH = 230, 6, 32, 7
WEIGHTS = np.random.default_rng(5).normal(size=(9, WIDTH)).astype(np.float32)


class Texts:
    """Texts of unequal length; those of BROKEN numbers cannot be read."""

    def __init__(self, n=N, broken=(), marks=None):
        self.n, self.broken, self.marks = n, frozenset(broken), marks

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        if row in self.broken:
            raise OSError(f"no such text {row}")
        return {"uid": f"id-{row}", "text": "abcdefghi" * (row % 11) + chr(97 + row % 26)}


def text_of(sample):
    return len(sample["text"])


def collate(samples):
    return [sample["text"] for sample in samples]


def letters(texts):
    """A row a text: the frequencies of nine letters, weighted; its last bits follow the batch's size."""
    counts = np.array([[text.count(chr(97 + i)) + 1 for i in range(9)] for text in texts], np.float32)
    return counts @ WEIGHTS


def expected(rows=range(N)):
    data = Texts()
    return letters([data[row]["text"] for row in rows])


class Loads:
    """Makes the model, leaving a file for each time it does."""

    def __init__(self, marks, seconds=0.0):
        self.marks, self.seconds = str(marks), seconds

    def __call__(self):
        Path(self.marks, f"{os.getpid()}-{uuid.uuid4().hex}").touch()
        return Slow(self.seconds)


class Slow:
    """The model, taking its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, texts):
        time.sleep(self.seconds)
        return letters(texts)


def slow_run(dest, marks, **more):
    import daskcurate as dc

    settings = {
        "chunk_rows": CHUNK,
        "batch_size": BATCH,
        "collate": collate,
        "id_of": "uid",
        "normalize": False,
    }
    return dc.embed(Loads(marks, 0.03), Texts(), dest, **settings | more)


def main(scheduler, dest, marks):
    """Embed, and be killed when the first chunk has been written."""
    dask.config.set({"daskcurate.progress": False})
    original = Client.gather

    def gather(client, futures, *args, **kwargs):
        if any("embed-" in str(future.key) and "probe" not in str(future.key) for future in futures):
            next(iter(as_completed(futures)))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(client, futures, *args, **kwargs)

    Client.gather = gather
    with Client(scheduler):
        slow_run(dest, marks)
