"""Embedding with torch modules and datasets."""

import math
import subprocess
import sys

import made
import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskcurate as dc
from daskcurate.embedding import torch_tools, workers
from daskcurate.embedding.identity import content_digest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset, TensorDataset  # noqa: E402

N, CHUNK = 150, 40


class Tokens(Dataset):
    """Sequences of unequal length."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        rng = np.random.default_rng(row)
        return {"tokens": torch.tensor(rng.integers(1, 50, 1 + row * 7 % 23)), "name": f"n{row}"}


def padded(samples):
    return {"tokens": nn.utils.rnn.pad_sequence([sample["tokens"] for sample in samples], batch_first=True)}


class Encoder(nn.Module):
    """The mean of one layer of attention over the tokens, in which dropout must be off."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(50, 16, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.5, batch_first=True)
        self.inputs = None

    def forward(self, batch):
        tokens = batch["tokens"]
        mask = tokens == 0
        hidden = self.layer(self.embedding(tokens), src_key_padding_mask=mask)
        keep = ~mask[..., None]
        return (hidden * keep).sum(1) / keep.sum(1)


def rows_of(emb):
    return emb.array.compute(scheduler="synchronous")


@pytest.fixture
def run(tmp_path):
    def embed(model=None, dataset=None, dest="pool.zarr", **more):
        settings = {"chunk_rows": CHUNK, "batch_size": 16, "collate": padded, "normalize": False}
        return dc.embed(model or Encoder(), dataset or Tokens(), tmp_path / dest, **settings | more)

    return embed


def one_by_one(model, **autocast):
    model = model.eval()
    with torch.inference_mode():
        return np.concatenate(
            [model(padded([sample])).numpy() for sample in map(Tokens().__getitem__, range(N))]
        )


def length(sample):
    return len(sample["tokens"])


@pytest.mark.parametrize("sort_by", [None, length])
def test_rows_are_those_of_the_module(run, sort_by):
    model = Encoder().train()
    emb = run(model, sort_by=sort_by, id_of="name")
    assert model.training  # the user's own is left as it is
    assert emb.shape == (N, 16)
    assert emb.ids.compute(scheduler="synchronous").tolist() == [f"n{i}" for i in range(N)]
    np.testing.assert_allclose(rows_of(emb), one_by_one(model), atol=2e-6)


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_autocast(run, autocast):
    emb = run(autocast=autocast, device="cpu", dest=autocast)
    whole = rows_of(run())
    assert emb.dtype == (np.float16 if autocast == "float16" else np.float32)
    difference = np.abs(rows_of(emb) - whole).max()
    assert 1e-6 < difference < 0.05 * np.abs(whole).max()


@pytest.mark.parametrize(
    ("kind", "stored"), [(torch.float16, "f2"), (torch.bfloat16, "f4"), (torch.float64, "f4")]
)
def test_dtype_follows_the_module(tmp_path, kind, stored):
    x = torch.randn(30, 8)
    model = nn.Linear(8, 3).to(kind)
    emb = dc.embed(model, x.to(kind), tmp_path / "pool.zarr", normalize=False, chunk_rows=7)
    assert emb.dtype == stored
    np.testing.assert_allclose(rows_of(emb), model(x.to(kind)).detach().float(), rtol=0.02, atol=0.02)


def test_the_default_collate_stacks(tmp_path):
    x = torch.randn(30, 3, 4)
    emb = dc.embed(nn.Flatten(), list(x), tmp_path / "pool.zarr", normalize=False)
    np.testing.assert_array_equal(rows_of(emb), x.reshape(30, 12))


def first_of(samples):
    return torch.stack([sample[0] for sample in samples])


def test_loaders(tmp_path):
    x = torch.randn(30, 4)
    loader = DataLoader(TensorDataset(x, torch.arange(30)), batch_size=3, shuffle=True, collate_fn=first_of)
    for number, given in enumerate((loader, lambda: loader)):
        emb = dc.embed(
            nn.Identity(), given, tmp_path / f"{number}.zarr", id_of=1, normalize=False, chunk_rows=8
        )
        np.testing.assert_array_equal(rows_of(emb), x)
        assert emb.ids.compute(scheduler="synchronous").tolist() == list(range(30))


def test_workers_and_threads_do_not_matter(run):
    alone = run(sort_by=length, dest="alone")
    threads = torch.get_num_threads()
    for number, per_worker in ((1, 1), (2, 1), (1, 3)):
        with (
            LocalCluster(
                n_workers=number, threads_per_worker=per_worker, processes=False, dashboard_address=":0"
            ) as cluster,
            Client(cluster),
        ):
            emb = run(sort_by=length, dest=f"{number}-{per_worker}")
        assert emb.fingerprint == alone.fingerprint
        assert rows_of(emb).tobytes() == rows_of(alone).tobytes()
    assert torch.get_num_threads() == threads


def fails_in_one_thread():
    with torch_tools.one_thread(), torch_tools.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError


def test_threads_are_put_back_after_a_failure():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError):
            fails_in_one_thread()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_iterable_datasets_are_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match="dataset of type Stream is not allowed: give one with"):
        dc.embed(nn.Identity(), Stream(), tmp_path / "pool.zarr")


def test_no_gpu_is_said(run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        RuntimeError, match="device='cuda' is not possible: torch finds no GPU on this worker"
    ):
        run(device="cuda")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [{"autocast": "bfloat16"}, {"device": "cuda"}])
def test_settings_of_torch_are_for_modules(tmp_path, more):
    for model in (made.letters, lambda: made.letters):
        with pytest.raises(
            TypeError, match="is not allowed with a model of type function: it is for torch modules"
        ):
            dc.embed(model, [1, 2], tmp_path / "pool.zarr", **more)
    assert not list(tmp_path.iterdir())


class Odd(Tokens):
    """Tokens of which one cannot be looked up, and one is not there."""

    def __getitem__(self, row):
        sample = super().__getitem__(row)
        if row == 33:
            sample["tokens"][0] = 50
        if row == 77:
            raise ValueError("no row 77")
        return sample


def test_broken_samples(run):
    with pytest.raises(ValueError, match=r"^sample (33 .*: the model raised IndexError|77: dataset)"):
        run(dataset=Odd(), id_of="name")
    with pytest.warns(UserWarning, match="2 of 150"):
        emb = run(dataset=Odd(), id_of="name", on_error="skip", sort_by=length)
    assert emb.skipped.rows.tolist() == [33, 77]
    assert emb.skipped.ids.tolist() == ["n33", ""]
    np.testing.assert_allclose(rows_of(emb), np.delete(one_by_one(Encoder()), [33, 77], axis=0), atol=2e-6)


def test_weights_tell_runs_apart():
    one, same, other = Encoder(0), Encoder(0), Encoder(1)
    assert content_digest(one) == content_digest(same) != content_digest(other)
    assert content_digest(nn.Dropout(0.1)) != content_digest(nn.Dropout(0.2))
    with torch.no_grad():
        same.embedding.weight[3, 3] += 1e-6
    assert content_digest(one) != content_digest(same)
    assert content_digest(torch.ones(3)) != content_digest(torch.ones(3, 1))
    assert content_digest(torch.ones(3)) != content_digest(torch.ones(3).to(torch.bfloat16))


DIGEST = """
import sys
sys.path[:0] = {path!r}
import torch
from torch import nn
from daskcurate.embedding.identity import content_digest
torch.manual_seed(1)
def collate(samples, k={{"a", "b", "c"}}):
    return [s for s in samples if s in {{"x", "y", "z"}}]
class Model:
    def __init__(self):
        self.names = {{"p", "q", "r"}}
        self.part = lambda x: x + 1
    def __call__(self, batch):
        return self.part(batch)
print(content_digest([nn.Sequential(nn.Linear(3, 3), nn.GELU()), collate, Model(), torch.ones(2), "a", 1.5]))
"""


def test_digests_are_those_of_other_processes():
    code = DIGEST.format(path=sys.path)
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(2)
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 32


def test_modules_on_a_gpu_are_saved_for_the_host():
    model = Encoder()
    assert torch_tools.on_host(model) is model
    assert not workers.is_factory(model)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_gpu(run, autocast):
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    emb = run(Encoder().cuda(), autocast=autocast)
    again = run(Encoder(), autocast=autocast, device="cuda", dest="again.zarr")
    assert emb.fingerprint == again.fingerprint
    whole = one_by_one(Encoder())
    tolerance = 1e-4 if autocast is None else 0.05 * np.abs(whole).max()
    assert math.isclose(np.abs(rows_of(emb) - whole).max(), 0, abs_tol=tolerance)
