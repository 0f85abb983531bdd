"""Embedding with plain functions of NumPy: all that needs no torch."""

import os
import subprocess
import sys
import threading
import warnings
from functools import partial

import made
import numpy as np
import pytest
from distributed import Client, LocalCluster
from made import BATCH, CHUNK, WIDTH, N, Texts, collate, expected, letters

import daskcurate as dc
from daskcurate.embedding import batches, embed, workers
from daskcurate.embedding.batches import EmbeddingError

SETTINGS = {"chunk_rows": CHUNK, "batch_size": BATCH, "collate": collate, "normalize": False}


def rows_of(emb):
    return emb.array.compute(scheduler="synchronous")


def ids_of(emb):
    return emb.ids.compute(scheduler="synchronous").tolist()


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.fixture
def run(tmp_path):
    """Return a function that embeds the texts, with changed settings."""

    def embed_texts(model=letters, dataset=None, dest="pool.zarr", **more):
        return dc.embed(model, Texts() if dataset is None else dataset, tmp_path / dest, **SETTINGS | more)

    return embed_texts


@pytest.fixture
def chunks(monkeypatch):
    """The first rows of the chunks that are embedded, in any order."""
    starts = []
    original = batches.Embedder.embed_range

    def embed_range(made_by, start, stop):
        starts.append(start)
        return original(made_by, start, stop)

    monkeypatch.setattr(batches.Embedder, "embed_range", embed_range)
    return starts


def test_rows_are_those_of_the_model(run, tmp_path):
    emb = run()
    assert emb.shape == (N, WIDTH)
    assert emb.dtype == np.float32
    assert emb.chunk_rows == CHUNK
    assert not emb.has_ids
    assert not emb.normalized
    assert emb.source == "letters of Texts"
    assert [len(part) for part in emb.skipped] == [0, 0, 0]
    close(rows_of(emb), expected())
    assert os.listdir(tmp_path) == ["pool.zarr"]
    assert emb == dc.open_embeddings(tmp_path / "pool.zarr")


def test_the_pool_is_that_of_an_ingestion(run, tmp_path):
    emb = run(id_of="uid")
    same = dc.ingest(rows_of(emb), tmp_path / "same.zarr", ids=ids_of(emb), normalize=False, chunk_rows=CHUNK)
    assert same.fingerprint == emb.fingerprint


@pytest.mark.parametrize(("dtype", "kind"), [(None, "f4"), ("float16", "f2"), (np.float32, "f4")])
@pytest.mark.parametrize("normalize", [True, False])
def test_dtype_and_norm(run, dtype, kind, normalize):
    emb = run(dtype=dtype, normalize=normalize)
    wanted = expected()
    if normalize:
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert emb.dtype == kind
    assert emb.normalized == normalize
    np.testing.assert_allclose(rows_of(emb), wanted, rtol=1e-3 if kind == "f2" else 1e-5)


@pytest.mark.parametrize(("kind", "stored"), [("f2", "f2"), ("f4", "f4"), ("f8", "f4")])
def test_dtype_follows_the_model(run, kind, stored):
    assert run(lambda texts: letters(texts).astype(kind)).dtype == stored


def test_rows_that_are_not_unit_length_warn(run):
    with pytest.warns(
        UserWarning, match="norms of the rows of letters of Texts are from .*normalize=True"
    ) as seen:
        run(normalize=None)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("dataset", [list(map(str, range(30))), np.arange(30), tuple(range(30))])
def test_any_sequence_is_a_dataset(dataset, tmp_path):
    def model(samples):
        return np.array([[float(item) + 1, 1.0] for item in samples])

    emb = dc.embed(model, dataset, tmp_path / "pool.zarr", normalize=False, chunk_rows=4)
    assert rows_of(emb)[:, 0].tolist() == list(range(1, 31))


def test_factories(run, tmp_path):
    (tmp_path / "marks").mkdir()
    emb = run(made.Loads(tmp_path / "marks"), partial(Texts, N))
    close(rows_of(emb), expected())
    assert len(os.listdir(tmp_path / "marks")) == 1  # once a process


class Called(Texts):
    """A dataset that can be called, which makes it no factory."""

    def __call__(self):
        raise AssertionError("called")


@pytest.mark.parametrize("dataset", [Texts, Called(), lambda: Texts()])
def test_what_makes_a_dataset(run, dataset):
    close(rows_of(run(dataset=dataset)), expected())


def test_ids(run):
    by_name = run(id_of="uid", dest="a")
    by_function = run(id_of=lambda sample: int(sample["uid"][3:]) * 7, dest="b")
    given = run(ids=[f"x{i}" for i in range(N)], dest="c")
    assert ids_of(by_name) == [f"id-{i}" for i in range(N)]
    assert ids_of(by_function) == [7 * i for i in range(N)]
    assert ids_of(given) == [f"x{i}" for i in range(N)]


SIZES = []


def recording(texts):
    SIZES.append([len(text) for text in texts])
    return letters(texts)


@pytest.mark.parametrize("key", [made.text_of, lambda sample: -len(sample["text"])], ids=["short", "long"])
def test_sorted_batches_keep_the_order(run, key, monkeypatch):
    SIZES.clear()
    monkeypatch.setattr(batches, "WINDOW_BATCHES", 2)
    emb = run(recording, sort_by=key, id_of="uid")
    close(rows_of(emb), expected())
    assert ids_of(emb) == [f"id-{i}" for i in range(N)]
    spans = [max(found) - min(found) for found in SIZES]
    plain = [
        max(found) - min(found) for found in ([(r % 11) * 9 for r in range(s, s + BATCH)] for s in range(9))
    ]
    assert np.mean(spans) < 0.7 * np.mean(plain)
    assert max(map(len, SIZES)) <= BATCH


def exact(x):
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("sort_by", [None, made.text_of])
def test_workers_and_threads_do_not_matter(run, sort_by):
    alone = run(sort_by=sort_by, dest="alone", id_of="uid")
    for number, threads in ((1, 1), (2, 1), (1, 3)):
        with (
            LocalCluster(
                n_workers=number, threads_per_worker=threads, processes=False, dashboard_address=":0"
            ) as cluster,
            Client(cluster),
        ):
            emb = run(sort_by=sort_by, dest=f"{number}-{threads}", id_of="uid")
        assert emb.fingerprint == alone.fingerprint
        assert exact(rows_of(emb)) == exact(rows_of(alone))


BROKEN = (0, 31, 32, 33, 100, 229)


def kept_rows(broken=BROKEN):
    return [row for row in range(N) if row not in broken]


@pytest.mark.parametrize("ids", ["none", "sample", "given"])
def test_broken_samples_are_skipped(run, tmp_path, ids):
    more = {"none": {}, "sample": {"id_of": "uid"}, "given": {"ids": [f"id-{i}" for i in range(N)]}}[ids]
    with pytest.warns(UserWarning, match="6 of 230 samples were skipped; the first: sample 0"):
        emb = run(dataset=Texts(broken=BROKEN), on_error="skip", **more)
    assert len(emb) == N - len(BROKEN)
    close(rows_of(emb), expected(kept_rows()))
    assert ids_of(emb) == [row if ids == "none" else f"id-{row}" for row in kept_rows()]
    skipped = emb.skipped
    assert skipped.rows.tolist() == list(BROKEN)
    names = {"none": "{}", "sample": "", "given": "id-{}"}[ids]  # a sample that cannot be read tells no id
    assert skipped.ids.tolist() == [names.format(row) for row in BROKEN]
    assert skipped.reasons[1] == "dataset[31] raised OSError: no such text 31"
    assert os.listdir(tmp_path) == ["pool.zarr"]
    again = dc.ingest(rows_of(emb), tmp_path / "b", ids=ids_of(emb), normalize=False, chunk_rows=CHUNK)
    assert again.fingerprint == emb.fingerprint


@pytest.mark.parametrize("normalize", [True, False])
def test_a_whole_chunk_is_skipped(run, normalize):
    broken = [*range(CHUNK, 2 * CHUNK), 3 * CHUNK]
    with pytest.warns(UserWarning, match="33 of 230"):
        emb = run(dataset=Texts(broken=broken), on_error="skip", normalize=normalize)
    wanted = expected(kept_rows(broken))
    close(rows_of(emb), wanted / np.linalg.norm(wanted, axis=1, keepdims=True) if normalize else wanted)
    assert emb.normalized == normalize
    assert emb.skipped.rows.tolist() == broken


def odd(texts, act):
    """The model, but ``act`` is called with the rows and the places of texts of 'b' alone."""
    found = letters(texts)
    places = [i for i, text in enumerate(texts) if text == "b"]
    return act(found, places) if places else found


def put(value, found, places):
    found[places] = value
    return found


def fail(found, places):
    raise KeyError("no token")


def wide(found, places):
    return np.ones((len(found), WIDTH + 1))


B = [row for row in range(N) if row % 11 == 0 and row % 26 == 1]  # texts that are just "b"
KINDS = {
    "nan": (partial(put, np.nan), r"its row holds NaN \(in column 0\)"),
    "inf": (partial(put, np.inf), r"its row holds an infinity \(in column 0\)"),
    "zero": (partial(put, 0), "its row has zero norm"),
    "raises": (fail, "the model raised KeyError: 'no token'"),
    "wide": (wide, r"the model returned shape \(1, 7\), not \(1, 6\)"),
    "none": (lambda *_: None, r"the model returned NoneType, not floats of shape \(1, width\)"),
    "1-D": (lambda found, _: found[:, 0], r"the model returned float32 of shape \(1,\), not floats"),
}


@pytest.mark.parametrize("sort_by", [None, made.text_of])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_that_break_the_model(run, kind, sort_by):
    act, reason = KINDS[kind]
    assert B == [209]
    model = partial(odd, act=act)
    with pytest.raises(
        ValueError, match=rf"^sample 209 \(id 'id-209'\): {reason}.* Mend it, or give on_error='skip'"
    ):
        run(model, id_of="uid", sort_by=sort_by)
    with pytest.warns(UserWarning, match="1 of 230"):
        emb = run(model, id_of="uid", sort_by=sort_by, on_error="skip")
    close(rows_of(emb), expected(kept_rows(B)))
    assert emb.skipped.ids.tolist() == ["id-209"]
    assert ids_of(emb) == [f"id-{row}" for row in kept_rows(B)]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            {"collate": lambda samples: [{"a": 1}[s["uid"][:4] != "id-9" and "a"] for s in samples]},
            "collate raised",
        ),
        (
            {"sort_by": lambda sample: {"a": 1}[sample["uid"][:4] != "id-9" and "a"]},
            "sort_by raised KeyError: False",
        ),
        (
            {"id_of": lambda sample: {"a": 1}[sample["uid"][:4] != "id-9" and "a"]},
            "id_of raised KeyError: False",
        ),
        (
            {"id_of": lambda sample: 9.5 if sample["uid"] == "id-9" else 1},
            "has the id 9.5: ids must be all strings",
        ),
        (
            {"id_of": lambda sample: "x" if sample["uid"] == "id-9" else 1},
            "has the id 'x': ids must be all strings",
        ),
    ],
)
def test_samples_that_break_functions(run, more, reason):
    with pytest.raises(ValueError, match=rf"sample 9\d?.*: {reason}"):
        run(lambda texts: np.ones((len(texts), 3)), **more)


def test_ids_that_repeat(run):
    with pytest.raises(
        ValueError, match="ids must not repeat, but 0 does: the dataset: row 0, and again.*row 115"
    ):
        run(id_of=lambda sample: int(sample["uid"][3:]) % 115)
    with pytest.raises(ValueError, match="ids must not repeat, but 3 does"):
        run(ids=[3, *range(N - 1)])
    # unless all but one are skipped
    with pytest.warns(UserWarning, match="115 of 230"):
        emb = run(dataset=Texts(broken=range(115)), id_of=lambda s: int(s["uid"][3:]) % 115, on_error="skip")
    assert ids_of(emb) == list(range(115))


def test_a_batch_that_fails_together_is_no_samples_fault(run, tmp_path):
    def model(texts):
        if len(texts) > 1:
            raise ValueError("lengths differ")
        return letters(texts)

    for on_error in ("raise", "skip"):
        with pytest.raises(
            EmbeddingError, match="cannot be embedded together, although each can alone: the model"
        ):
            run(model, on_error=on_error)
    assert not (tmp_path / "pool.zarr").exists()


@pytest.mark.parametrize("error", [MemoryError("too much"), RuntimeError("CUDA error: device-side assert")])
def test_the_machines_faults_are_no_samples_faults(run, error):
    def model(texts):
        if len(texts) > 1:
            raise error
        return letters(texts)

    with pytest.raises(EmbeddingError, match=str(error)):
        run(model, on_error="skip")


def test_no_sample_can_be_embedded(run, tmp_path):
    def model(texts):
        raise ValueError("never")

    for on_error, text in (
        ("raise", "sample 0: the model raised ValueError: never"),
        ("skip", "none of 16 samples"),
    ):
        with pytest.raises(ValueError, match=text):
            run(model, on_error=on_error)
    assert not os.listdir(tmp_path)


def failing(texts, at, error):
    """The model, failing at a text that is first in its batch; a place that is only there once it is told to."""
    if texts[0] == Texts()[at]["text"] and len(texts) > 1 and os.path.exists(error):
        raise MemoryError("no room")
    return letters(texts)


@pytest.fixture
def interrupted(run, tmp_path):
    """Return a function that runs until the chunk of row 96 fails, and lets the others be written."""

    def start(**more):
        flag = tmp_path.parent / f"{tmp_path.name}-flag"
        model = partial(failing, at=3 * CHUNK, error=str(flag))
        flag.touch()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("daskcurate.io.chunkwise.ChunkJob.stop", lambda job: None)
            with pytest.raises(EmbeddingError, match="no room"):
                run(model, **more)
        flag.unlink()
        return model

    return start


def test_the_same_call_goes_on(run, interrupted, chunks, tmp_path):
    model = interrupted(id_of="uid")
    assert not (tmp_path / "pool.zarr").exists()
    chunks.clear()
    emb = run(model, id_of="uid")
    assert chunks == [3 * CHUNK]
    whole = run(model, id_of="uid", dest="whole.zarr")
    assert emb.fingerprint == whole.fingerprint
    assert exact(rows_of(emb)) == exact(rows_of(whole))
    assert sorted(os.listdir(tmp_path)) == ["pool.zarr", "whole.zarr"]


def reading(sample):
    return sample["uid"].upper()


OTHER = {
    "batch_size": ({"batch_size": BATCH + 1}, True),
    "normalize": ({"normalize": True}, True),
    "dtype": ({"dtype": "float16"}, True),
    "sort_by": ({"sort_by": made.text_of}, True),
    "collate": ({"collate": lambda samples: [sample["text"] for sample in samples]}, True),
    "id_of": ({"id_of": reading}, True),
    "ids": ({"id_of": None, "ids": list(range(N))}, True),
    "revision": ({"revision": "2"}, True),
    "dataset": ({"dataset": Texts(broken=[N - 1]), "on_error": "skip"}, True),
    "length": ({"dataset": Texts(N - 1)}, True),
    "model": ({"model": letters}, True),
    "on_error": ({"on_error": "skip"}, False),
    "overwrite": ({"overwrite": True}, False),
}


@pytest.mark.parametrize("change", OTHER)
def test_another_call_starts_anew(run, interrupted, chunks, change):
    more, anew = OTHER[change]
    model = interrupted(id_of="uid")
    chunks.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(**{"model": model, "id_of": "uid"} | more)
    assert len(chunks) == (8 if anew else 1)


def test_skipped_chunks_are_gone_on_with(run, interrupted, chunks):
    dataset = Texts(broken=BROKEN[1:])
    model = interrupted(dataset=dataset, on_error="skip")
    chunks.clear()
    with pytest.warns(UserWarning, match="5 of 230"):
        emb = run(model, dataset, on_error="skip")
    assert chunks == [3 * CHUNK]
    close(rows_of(emb), expected(kept_rows(BROKEN[1:])))
    assert emb.skipped.rows.tolist() == list(BROKEN[1:])


def test_what_raised_can_be_skipped_or_mended(run, chunks):
    with pytest.raises(ValueError, match=r"sample 100: dataset\[100\] raised OSError"):
        run(dataset=Texts(broken=[100]))
    before = set(chunks)
    chunks.clear()
    emb = run()  # the sample is not among those that are compared
    close(rows_of(emb), expected())
    assert 96 in chunks
    assert not (before - {96}) & set(chunks)


def test_what_was_skipped_is_tried_again_unless_it_may_be_skipped(run, interrupted, chunks):
    model = interrupted(dataset=Texts(broken=[100, 200]), on_error="skip")
    chunks.clear()
    emb = run(model)
    assert sorted(chunks) == [96, 192]
    close(rows_of(emb), expected())
    assert not len(emb.skipped.rows)


def test_overwrite(run, tmp_path):
    old = run()
    with pytest.raises(
        FileExistsError, match=r"pool.zarr exists already: give another dest, or overwrite=True"
    ):
        run()
    with pytest.raises(ValueError, match="sample 100"):
        run(dataset=Texts(broken=[100]), overwrite=True)
    assert dc.open_embeddings(tmp_path / "pool.zarr") == old
    new = run(overwrite=True, dtype="float16")
    assert new.dtype == "f2"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is not a pool, so overwrite=True does not replace it"):
        run(dest="file", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "pool.zarr"]


def test_url(tmp_path):
    emb = dc.embed(letters, Texts(), f"memory://{tmp_path.name}/pool.zarr", **SETTINGS)
    close(rows_of(emb), expected())


class Stream:
    """A dataset without samples by number."""

    def __iter__(self):
        return iter(())


BAD = {
    "model": ({"model": 3}, TypeError, "model of type int is not allowed: give a torch module"),
    "no dataset": ({"dataset": 3}, TypeError, r"dataset of type int is not allowed: give one with len\(\)"),
    "stream": ({"dataset": Stream()}, TypeError, "dataset of type Stream is not allowed"),
    "text": ({"dataset": "texts.txt"}, TypeError, "dataset of type str is not allowed"),
    "empty": ({"dataset": []}, ValueError, "the dataset is empty: it has 0 samples"),
    "dest": ({"dest": 3}, TypeError, "dest=3 is not allowed"),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size=0 is not allowed: give an integer >= 1"),
    "chunk_rows": ({"chunk_rows": 1.5}, TypeError, "chunk_rows=1.5 is not allowed"),
    "device": (
        {"device": "gpu"},
        ValueError,
        "device='gpu' is not allowed: give one of 'auto', 'cpu', 'cuda'",
    ),
    "autocast": ({"autocast": "bf16"}, ValueError, "autocast='bf16' is not allowed: give one of 'bfloat16'"),
    "normalize": ({"normalize": 1}, TypeError, "normalize=1 is not allowed: give True, False or None"),
    "dtype": ({"dtype": "float64"}, ValueError, "dtype='float64' is not allowed: give 'float16', 'float32'"),
    "on_error": (
        {"on_error": "ignore"},
        ValueError,
        "on_error='ignore' is not allowed: give one of 'raise', 'skip'",
    ),
    "overwrite": ({"overwrite": 1}, TypeError, "overwrite=1 is not allowed: give True or False"),
    "revision": ({"revision": 3}, TypeError, "revision=3 is not allowed: give a text or None"),
    "collate": ({"collate": 3}, TypeError, "collate=3 is not allowed: give a function or None"),
    "sort_by": ({"sort_by": "len"}, TypeError, "sort_by='len' is not allowed: give a function or None"),
    "id_of": ({"id_of": 1.5}, TypeError, "id_of=1.5 is not allowed: give a function of a sample, a key"),
    "two ids": ({"id_of": "uid", "ids": list(range(N))}, ValueError, "ids with id_of is not allowed"),
    "few ids": (
        {"ids": [1, 2]},
        ValueError,
        "ids has 2 ids, but the dataset has 230 rows: give one id a row",
    ),
    "kind of ids": ({"ids": np.ones(N)}, TypeError, "ids of float64 are not allowed"),
    "pickle": (
        {"dataset": [threading.Lock()]},
        TypeError,
        "cannot be pickled .*: give a function without arguments",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_run_nothing(case, tmp_path, monkeypatch):
    more, error, text = BAD[case]
    given = {"model": letters, "dataset": Texts(), "dest": tmp_path / "pool.zarr"} | SETTINGS | more
    monkeypatch.setattr(sys.modules[embed.__module__], "run_tasks", lambda *_: pytest.fail("a task was run"))
    with pytest.raises(error, match=text):
        dc.embed(**given)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"dataset": lambda: []}, ValueError, "the dataset is empty"),
        ({"dataset": lambda: 3}, TypeError, "dataset of type int is not allowed"),
        ({"model": lambda: 3}, TypeError, "the model is of type int, which cannot be called"),
        (
            {"dataset": partial(Texts, N), "ids": [1, 2]},
            ValueError,
            "has 2 ids, but the dataset has 230 rows",
        ),
        ({"id_of": lambda sample: 1.5}, ValueError, "sample 0: has the id 1.5"),
    ],
)
def test_what_factories_make_is_checked_first(more, error, text, tmp_path):
    with pytest.raises(error, match=text):
        dc.embed(**{"model": letters, "dataset": Texts(), "dest": tmp_path / "pool.zarr"} | SETTINGS | more)
    assert not os.listdir(tmp_path)


def test_factories_are_told_from_models():
    assert workers.is_factory(lambda: letters)
    assert workers.is_factory(partial(Texts, 3))
    assert workers.is_factory(Texts)
    assert workers.is_factory(made.Loads("x"))
    assert not workers.is_factory(letters)
    assert not workers.is_factory(made.Slow(0))
    assert not workers.is_factory(np.sqrt)
    assert not workers.is_factory(3)
    assert not workers.is_factory(lambda *batches: None)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import numpy as np
import daskcurate as dc
assert not [name for name, module in sys.modules.items() if name.startswith("torch") and module]
for more in ({"autocast": "bfloat16"}, {"device": "cuda"}):
    try:
        dc.embed(lambda batch: np.ones((len(batch), 2)), [1, 2], "pool.zarr", **more)
    except ImportError as error:
        assert "pip install 'daskcurate[torch]'" in str(error), error
    else:
        raise SystemExit("no error")
print(dc.embed(lambda batch: np.ones((len(batch), 2)), [1, 2], "pool.zarr", normalize=True))
"""


def test_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 rows x 2 float32" in done.stdout
    assert os.listdir(tmp_path) == ["pool.zarr"]
