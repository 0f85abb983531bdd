import inspect
import re
import textwrap

import pytest

import daskcurate
from daskcurate import pipeline_config
from daskcurate.clusters import ClusterSpec
from daskcurate.local_cluster import LocalClusterConfig, make_local_cluster
from daskcurate.pipeline_config import ConfigError, ExportSpec, load_config
from daskcurate.verbs import VERBS

CHAIN = """\
embeddings: pool.zarr
store: run.zarr
stages:
  flat:   {kmeans: {n_clusters: 1000, metric: cosine}}
  dedup:  {semantic_dedup: {clustering: flat, eps: 0.05}}
  prune:  {density_prune: {clustering: flat, keep_fraction: 0.5, within: dedup}}
  tree:   {hierarchical_kmeans: {n_clusters: [5000, 1000], sample_sizes: [10, 3], within: prune}}
  picks:  {hierarchical_sample: {tree: tree, target_size: 20000}}
exports:
  picks.npy: picks
  picks.parquet: picks
cluster: {n_workers: 2, memory_limit: 4GiB}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _load(text, *overrides):
        (tmp_path / "run.yaml").write_text(textwrap.dedent(text))
        return load_config("run.yaml", overrides)

    return _load


def with_stages(text):
    """Return a run with these stages below `flat`, which is on line 4; the first of them is on line 5."""
    head = "embeddings: pool.zarr\nstore: run.zarr\nstages:\n  flat: {kmeans: {n_clusters: 10}}\n"
    return head + textwrap.indent(textwrap.dedent(text), "  ")


class Node:
    """What a fake builder returns: records calls and combinations."""

    def __init__(self, text):
        self.text = text

    def __and__(self, other):
        return Node(f"({self.text} & {other.text})")

    def __or__(self, other):
        return Node(f"({self.text} | {other.text})")

    def __invert__(self):
        return Node(f"~{self.text}")


@pytest.fixture
def calls(monkeypatch):
    found = []

    def fake(verb):
        def build(*args, **kwargs):
            found.append((verb, args, {k: v.text if isinstance(v, Node) else v for k, v in kwargs.items()}))
            return Node(f"{verb}{len(found)}")

        return build

    for verb in VERBS:
        monkeypatch.setattr(daskcurate, verb, fake(verb))
    return found


def test_the_chain_is_built_in_order(load, calls):
    config = load(CHAIN)
    assert config.embeddings.path == "pool.zarr"
    assert config.embeddings.ingest is None
    assert config.store == "run.zarr"
    assert config.exports == (ExportSpec("picks.npy", "picks"), ExportSpec("picks.parquet", "picks"))
    assert config.cluster == ClusterSpec("local", {"n_workers": 2, "memory_limit": "4GiB"})
    assert calls == []
    nodes = config.build("pool")
    assert list(nodes) == ["flat", "dedup", "prune", "tree", "picks"]
    assert calls == [
        ("kmeans", ("pool",), {"n_clusters": 1000, "metric": "cosine"}),
        ("semantic_dedup", ("pool",), {"clustering": "kmeans1", "eps": 0.05}),
        ("density_prune", (), {"clustering": "kmeans1", "keep_fraction": 0.5, "within": "semantic_dedup2"}),
        (
            "hierarchical_kmeans",
            ("pool",),
            {"n_clusters": [5000, 1000], "sample_sizes": [10, 3], "within": "density_prune3"},
        ),
        ("hierarchical_sample", (), {"tree": "hierarchical_kmeans4", "target_size": 20000}),
    ]


def test_stages_may_be_written_in_any_order_and_combined(load, calls):
    config = load(
        """\
        embeddings: {source: "emb/*.npy", dest: pool.zarr, ids: ids.parquet, normalize: true}
        store: s3://bucket/run.zarr
        stages:
          last: {random_prune: {target_size: 5, within: " (a | b) & ~c "}}
          c: {prototype_prune: {clustering: tree, keep_fraction: 0.5}}
          b: {random_prune: {keep_fraction: 2e-1}}
          a: {hierarchical_sample: {tree: flat, target_size: 1_000}}
          tree:
            hierarchical_kmeans:
              n_clusters: [100, 20]
              n_splits: [10, 1]
              sample_sizes: [1, 5]
              n_resamples: 3
          flat: {kmeans: {n_clusters: 10, tol: 1e-3, within: null}}
        exports:
          all.out: {stage: last, format: ids}
          levels.parquet: tree
        """
    )
    assert config.embeddings.path == "pool.zarr"
    assert config.embeddings.ingest == {
        "source": "emb/*.npy",
        "dest": "pool.zarr",
        "ids": "ids.parquet",
        "normalize": True,
    }
    assert config.cluster is None
    assert config.exports == (ExportSpec("all.out", "last", "ids"), ExportSpec("levels.parquet", "tree"))
    config.build("pool")
    by_verb = [(verb, kwargs) for verb, _, kwargs in calls]
    assert by_verb[0] == ("kmeans", {"n_clusters": 10, "tol": 0.001})
    assert by_verb[2] == ("random_prune", {"keep_fraction": 0.2})
    assert by_verb[-1][1]["within"] == "((hierarchical_sample2 | random_prune3) & ~prototype_prune5)"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("stages.dedup.eps=0.1", ("dedup", "eps"), 0.1),
        ("stages.dedup.semantic_dedup.eps=1e-2", ("dedup", "eps"), 0.01),
        ("stages.flat.seed=7", ("flat", "seed"), 7),
        ("stages.tree.n_clusters=[50, 10]", ("tree", "n_clusters"), [50, 10]),
        ("stages.picks={hierarchical_sample: {tree: flat, target_size: 3}}", ("picks", "target_size"), 3),
        ("stages.more.random_prune.keep_fraction=0.5", ("more", "keep_fraction"), 0.5),
    ],
)
def test_overrides_of_stages(load, override, path, value):
    stages = {stage.name: stage for stage in load(CHAIN, override).stages}
    assert stages[path[0]].parameters[path[1]] == value


def test_other_overrides(load):
    config = load(
        "stages: {flat: {kmeans: {n_clusters: 10}}}",
        "embeddings={source: a.npy, dest: p.zarr}",
        "embeddings.normalize=false",
        "store=x=y.zarr",
        "exports.a.b.parquet=flat",
        "cluster.n_workers=3",
    )
    assert config.embeddings.ingest == {"source": "a.npy", "dest": "p.zarr", "normalize": False}
    assert config.store == "x=y.zarr"
    assert config.exports == (ExportSpec("a.b.parquet", "flat"),)
    assert config.cluster == ClusterSpec("local", {"n_workers": 3})


def test_a_builders_refusal_names_line_and_key(load, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("n_clusters=1000 is not allowed: the pool has 10 rows")

    monkeypatch.setattr(daskcurate, "kmeans", refuse)
    phrase = "run.yaml, line 4: stages.flat.kmeans: n_clusters=1000 is not allowed: the pool has 10 rows"
    with pytest.raises(ConfigError, match=re.escape(phrase)):
        load(CHAIN).build("pool")


@pytest.mark.parametrize("verb", VERBS)
def test_the_table_agrees_with_the_builders(verb):
    parameters = inspect.signature(getattr(daskcurate, verb)).parameters
    assert ("emb" in parameters) == VERBS[verb].reads_pool
    assert set(parameters) - {"emb"} == set(VERBS[verb].parameters)
    required = [name for name, item in parameters.items() if item.default is inspect.Parameter.empty]
    assert set(required) - {"emb"} == set(VERBS[verb].required)


def test_other_tables_agree_with_their_functions():
    assert list(pipeline_config._INGEST) == list(inspect.signature(daskcurate.ingest).parameters)
    fields = LocalClusterConfig.__dataclass_fields__
    assert {name: item.default for name, item in fields.items()} == {
        name: item.default for name, item in inspect.signature(make_local_cluster).parameters.items()
    }


# Each: the stages below `flat: {kmeans: ...}`, the line and key, and what the message says besides.
BAD_STAGES = [
    ("x: {kmean: {}}", 5, "stages.x.kmean", "unknown verb 'kmean'", "did you mean 'kmeans'?"),
    ("x: {}", 5, "stages.x", "give one verb, such as {kmeans: {n_clusters: 1000}}"),
    ("x: kmeans", 5, "stages.x", "'kmeans' is not allowed: give one verb"),
    (
        "x: {kmeans: {n_clusters: 3}, random_prune: {keep_fraction: 1}}",
        5,
        "stages.x.random_prune",
        "two verbs in one stage: kmeans and random_prune",
    ),
    ("x: {kmeans: [3]}", 5, "stages.x.kmeans", "[3] is not allowed: give parameters"),
    ("x: {kmeans: }", 5, "stages.x.kmeans", "missing parameter 'n_clusters'; given: none"),
    (
        "x:\n  kmeans:\n    n_clusters: 3\n    n_iter: 5",
        8,
        "stages.x.kmeans.n_iter",
        "unknown parameter 'n_iter': give one of",
        "did you mean 'n_iters'?",
    ),
    (
        "x: {kmeans: {n_clusters: 3, sample_size: 5}}",
        5,
        "stages.x.kmeans.sample_size",
        "unknown parameter 'sample_size'",
    ),
    ("x: {kmeans: {n_clusters: 0}}", 5, "stages.x.kmeans.n_clusters", "n_clusters=0", "an integer >= 1"),
    ("x: {kmeans: {n_clusters: ten}}", 5, "stages.x.kmeans.n_clusters", "n_clusters='ten' is not allowed"),
    ("x: {kmeans: {n_clusters: [5, 3]}}", 5, "stages.x.kmeans.n_clusters", "n_clusters=[5, 3]"),
    (
        "x:\n  kmeans:\n    metric: cosin\n    n_clusters: 3",
        7,
        "stages.x.kmeans.metric",
        "metric='cosin' is not allowed: give one of 'l2', 'cosine'",
        "did you mean 'cosine'?",
    ),
    ("x: {kmeans: {n_clusters: 3, init: array}}", 5, "stages.x.kmeans.init", "init='array' is not allowed"),
    (
        "x: {hierarchical_kmeans: {n_clusters: 5}}",
        5,
        "stages.x.hierarchical_kmeans.n_clusters",
        "n_clusters=5 is not allowed: give a list of integers, one a level",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: []}}",
        5,
        "stages.x.hierarchical_kmeans.n_clusters",
        "n_clusters=[]",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: [5, 0]}}",
        5,
        "stages.x.hierarchical_kmeans.n_clusters",
        "n_clusters[1]=0 is not allowed: give an integer >= 1",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: [5, 9]}}",
        5,
        "stages.x.hierarchical_kmeans.n_clusters",
        "n_clusters[1]=9 is not allowed: it clusters the 5 clusters of the level below",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: [5, 3], sample_sizes: [2]}}",
        5,
        "stages.x.hierarchical_kmeans.sample_sizes",
        "sample_sizes=[2] is not allowed: it has 1 entries, n_clusters 2",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: [5, 3], sample_sizes: [2, 0]}}",
        5,
        "stages.x.hierarchical_kmeans.sample_sizes",
        "sample_sizes[1]=0 is not allowed",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: [5, 3], n_resamples: many}}",
        5,
        "stages.x.hierarchical_kmeans.n_resamples",
        "n_resamples='many' is not allowed",
    ),
    (
        "x: {hierarchical_kmeans: {n_clusters: [5, 3], sample_sizes: [4, 1], n_splits: [2, 1]}}",
        5,
        "stages.x.hierarchical_kmeans.n_splits",
        "n_splits[0]=2 with sample_sizes[0]=4 is not allowed",
    ),
    ("x: {semantic_dedup: {clustering: flat}}", 5, "stages.x.semantic_dedup", "missing parameter 'eps'"),
    (
        "x: {semantic_dedup: {eps: 0.1}}",
        5,
        "stages.x.semantic_dedup",
        "missing parameter 'clustering'; given: 'eps'",
    ),
    ("x: {semantic_dedup: {clustering: flat, eps: 3}}", 5, "stages.x.semantic_dedup.eps", "eps=3", "[0, 2]"),
    (
        "x: {semantic_dedup: {clustering: flat, eps: '0.1'}}",
        5,
        "stages.x.semantic_dedup.eps",
        "eps='0.1' is not allowed: give a number in [0, 2]",
    ),
    (
        "x: {semantic_dedup: {clustering: flat, eps: .1, keep: score}}",
        5,
        "stages.x.semantic_dedup.keep",
        "keep='score' is not allowed",
    ),
    (
        "x: {semantic_dedup: {clustering: fla, eps: 0.1}}",
        5,
        "stages.x.semantic_dedup.clustering",
        "unknown stage 'fla'",
        "did you mean 'flat'?",
    ),
    (
        "x: {semantic_dedup: {clustering: 3, eps: 0.1}}",
        5,
        "stages.x.semantic_dedup.clustering",
        "3 is not allowed: give the name of a stage",
    ),
    (
        "p: {random_prune: {keep_fraction: 1}}\nx: {density_prune: {clustering: p, keep_fraction: 1}}",
        6,
        "stages.x.density_prune.clustering",
        "'p' is a selection, where a clustering is needed: give one of 'flat'",
    ),
    (
        "x: {hierarchical_sample: {tree: x, target_size: 3}}",
        5,
        "stages.x.hierarchical_sample.tree",
        "'x' is a selection, where a clustering is needed",
    ),
    (
        "x: {random_prune: {keep_fraction: 1, within: flat}}\np: {random_prune: {keep_fraction: 1}}",
        5,
        "stages.x.random_prune.within",
        "'flat' is a clustering, where a selection is needed: give one of 'p'",
    ),
    ("x: {kmeans: {n_clusters: 3, within: flat}}", 5, "stages.x.kmeans.within", "needed: there is none"),
    (
        "p: {random_prune: {keep_fraction: 1}}\nx: {random_prune: {keep_fraction: 1, within: p & ~q}}",
        6,
        "stages.x.random_prune.within",
        "unknown stage 'q'",
    ),
    (
        "p: {random_prune: {keep_fraction: 1}}\nx: {random_prune: {keep_fraction: 1, within: p and p}}",
        6,
        "stages.x.random_prune.within",
        "'p and p' is not allowed: give names of stages, joined by & (and) and | (or)",
    ),
    (
        "x: {random_prune: {keep_fraction: 1, within: \"__import__('os')\"}}",
        5,
        "stages.x.random_prune.within",
        "is not allowed: give names of stages",
    ),
    ("x: {random_prune: {keep_fraction: 1, within: p &}}", 5, "stages.x.random_prune.within", "'p &' is not"),
    ("x: {random_prune: {keep_fraction: 1, within: true}}", 5, "stages.x.random_prune.within", "True is not"),
    (
        "x: {random_prune: {keep_fraction: 1, within: y}}\ny: {random_prune: {keep_fraction: 1, within: ~x}}",
        5,
        "stages.x",
        "the stages refer to each other in a circle: x -> y -> x",
    ),
    ("x: {random_prune: {}}", 5, "stages.x.random_prune", "give exactly one of them"),
    (
        "x: {random_prune: {keep_fraction: 0.5, target_size: 5}}",
        5,
        "stages.x.random_prune.keep_fraction",
        "keep_fraction=0.5 with target_size=5 is not allowed",
    ),
    (
        "x: {density_prune: {clustering: flat, keep_fraction: 0.5, density: sise}}",
        5,
        "stages.x.density_prune.density",
        "density='sise' is not allowed",
        "did you mean 'size'?",
    ),
    (
        "x: {prototype_prune: {clustering: flat, keep_fraction: 0.5, keep: random}}",
        5,
        "stages.x.prototype_prune.keep",
        "give one of 'hard', 'easy'",
    ),
    ("flat: {kmeans: {n_clusters: 3}}", 5, "stages.flat", "'flat' is given twice, first at line 4"),
    ("x: {kmeans: {n_clusters: 3, n_clusters: 4}}", 5, "stages.x.kmeans.n_clusters", "is given twice"),
    ("a-b: {kmeans: {n_clusters: 3}}", 5, "stages.a-b", "give letters, digits and underscores"),
    ("x: &a {kmeans: *a}", 5, "stages.x.kmeans", "refers to the mapping that it is in"),
    ("x: {kmeans: {n_clusters: !!python/name:os.system }}", 5, "stages.x.kmeans.n_clusters", "constructor"),
]


@pytest.mark.parametrize(("stages", "line", "key", "phrases"), [(s, n, k, p) for s, n, k, *p in BAD_STAGES])
def test_bad_stages(load, calls, stages, line, key, phrases):
    with pytest.raises(ConfigError) as caught:
        load(with_stages(stages))
    message = str(caught.value)
    assert message.startswith(f"run.yaml, line {line}: {key}: ")
    for phrase in phrases:
        assert phrase in message
    assert calls == []


HEAD = "embeddings: pool.zarr\nstore: run.zarr\nstages: {flat: {kmeans: {n_clusters: 10}}}\n"
POOL = "store: run.zarr\nstages: {flat: {kmeans: {n_clusters: 10}}}\nembeddings: "

BAD_FILES = [
    ("", "run.yaml: the file is empty"),
    ("# nothing\n", "run.yaml: the file is empty"),
    ("- a\n- b\n", "run.yaml, line 1: ['a', 'b'] is not a run"),
    ("embeddings: [pool.zarr\nstore: x\n", "run.yaml, line 2: not valid YAML"),
    ("embeddings: a\n\tstore: b\n", "run.yaml, line 2: not valid YAML"),
    ("a: *b\n", "run.yaml, line 1: not valid YAML: found undefined alias 'b'"),
    ("a: 1\n---\nb: 2\n", "run.yaml, line 2: not valid YAML: expected a single document"),
    ("store: \x00\n", "run.yaml: not valid YAML"),
    ("[" * 5000, "run.yaml: not allowed: it is nested too deeply"),
    ("? [a]\n: b\n", "run.yaml, line 1: a list or mapping is not allowed as a key"),
    ("embeddings: a\nstore: b\n", "run.yaml, line 1: missing key 'stages'; given: 'embeddings', 'store'"),
    (
        HEAD + "export: {a.npy: x}\n",
        "run.yaml, line 4: export: unknown key 'export'",
        "did you mean 'exports'?",
    ),
    (HEAD + "store: again\n", "line 4: store: 'store' is given twice, first at line 2"),
    (HEAD.replace("run.zarr", "3"), "line 2: store: 3 is not allowed: give the path or URL of a run store"),
    (HEAD.replace("run.zarr", ""), "line 2: store: None is not allowed"),
    (HEAD.replace("run.zarr", "pool.zarr/"), "line 2: store: 'pool.zarr/' is the pool itself"),
    (
        HEAD.replace("pool.zarr", "[a.npy]"),
        "line 1: embeddings: ['a.npy'] is not allowed: give the path of a pool",
    ),
    ("embeddings: p\nstore: s\nstages:\n", "line 3: stages: None is not allowed: give `name:"),
    ("embeddings: p\nstore: s\nstages: [kmeans]\n", "line 3: stages: ['kmeans'] is not allowed"),
    (POOL + "{source: a.npy}", "line 3: embeddings: missing key 'dest'; given: 'source'"),
    (POOL + "{source: a, dest: b, normalise: true}", "unknown key 'normalise'", "did you mean 'normalize'?"),
    (POOL + "{source: [], dest: b}", "embeddings.source: source=[] is not allowed: give a path, glob or URL"),
    (POOL + "{source: a, dest: b, normalize: 1}", "normalize=1 is not allowed: give true, false or null"),
    (
        POOL + "{source: a, dest: b, dtype: int8}",
        "dtype='int8' is not allowed: give float16, float32 or null",
    ),
    (POOL + "{source: a, dest: b, shape: [3]}", "shape=[3] is not allowed: give [rows, width]"),
    (POOL + "{source: a, dest: b, chunk_rows: 0}", "chunk_rows=0 is not allowed: give an integer >= 1"),
    (HEAD + "exports: flat\n", "line 4: exports: 'flat' is not allowed: give `file: stage`"),
    (
        HEAD + "exports: {a.parquet: fat}\n",
        "line 4: exports.a.parquet: unknown stage 'fat'",
        "did you mean 'flat'?",
    ),
    (HEAD + "exports: {a.npy: flat}\n", "'flat' is a clustering, which selects no rows to write as 'npy'"),
    (
        HEAD + "exports: {a.parq: flat}\n",
        "the suffix '.parq' does not say the format",
        "did you mean '.parquet'?",
    ),
    (
        HEAD + "exports: {a.x: {stage: flat, format: csv}}\n",
        "exports.a.x.format: format='csv' is not allowed",
    ),
    (HEAD + "exports: {a.x: {format: npy}}\n", "exports.a.x: missing key 'stage'"),
    (HEAD + "cluster: {workers: 2}\n", "cluster.workers: unknown key 'workers'", "did you mean 'n_workers'?"),
    (
        HEAD + "cluster: {memory_limit: lots}\n",
        "line 4: cluster.memory_limit: memory_limit='lots' is not allowed",
    ),
]


@pytest.mark.parametrize(("text", "phrases"), [(text, phrases) for text, *phrases in BAD_FILES])
def test_bad_files(load, text, phrases):
    with pytest.raises(ConfigError) as caught:
        load(text)
    for phrase in ("run.yaml", *phrases):
        assert phrase in str(caught.value)


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        (
            "stages.dedup.eps=3",
            "stages.dedup.semantic_dedup.eps: eps=3 is not allowed: give a number in [0, 2]",
        ),
        ("stages.dedup.epps=0.1", "stages.dedup.semantic_dedup.epps: unknown parameter 'epps'"),
        ("stages.dedupe.eps=0.1", "stages.dedupe.eps: unknown stage 'dedupe': give one of 'flat'"),
        ("stages.dedup.kmeans.n_clusters=3", "two verbs in one stage: semantic_dedup and kmeans"),
        ("stages.dedup.eps.x=3", "stages.dedup.semantic_dedup.eps: is 0.05, which has no keys"),
        ("stages.dedup.within=dedup", "the stages refer to each other in a circle: dedup -> dedup"),
        ("store.path=x", "store: is 'run.zarr', which has no keys"),
        ("stor=x", "stor: unknown key 'stor'"),
        ("store=", "store: None is not allowed"),
        ("store=[x", "not valid YAML"),
        ("store", "not allowed: give key=value, such as stages.dedup.eps=0.1"),
        ("=x", "not allowed: give key=value"),
        ("stages..eps=x", "not allowed: give key=value"),
        ("cluster.n_workers=0", "cluster.n_workers: n_workers=0 is not allowed"),
        ("exports.a.npy=flat", "exports.a.npy: 'flat' is a clustering"),
    ],
)
def test_bad_overrides(load, override, phrase):
    with pytest.raises(ConfigError) as caught:
        load(CHAIN, override)
    message = str(caught.value)
    assert phrase in message
    if "circle" not in message:
        assert message.startswith(f"run.yaml, --set {override}: ")


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        load_config(tmp_path / "bytes.yaml")
