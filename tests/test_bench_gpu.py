"""The benchmark of GPUs runs, tiny: on NumPy, and on the stand-in for CuPy, which refuses to mix the two."""

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import stand_in

from daskcurate import device

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(folder):
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def check(found):
    assert not [row for row in found if "failed" in row]
    names = {row["what"] for row in found}
    assert {
        "GEMM",
        "copies",
        "k-means pass",
        "labels",
        "dedup",
        "out of core",
        "run: kmeans, 10 updates",
    } <= names
    assert all(
        row["same_in_all_precisions"] and row["same_as_float64"] for row in found if row["what"] == "labels"
    )
    assert all(row["tflops"] > 0 for row in found if row["what"] in ("k-means pass", "dedup"))


@pytest.mark.parametrize("on", ["numpy", "stand-in"])
def test_the_benchmark_runs(bench, on, tmp_path, monkeypatch, capsys):
    arguments = ["--scale", "0.0001", "--out", str(tmp_path)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if on == "numpy":
            assert bench.main([*arguments, "--stand-in"]) == 0
        else:
            monkeypatch.setattr(device, "SMALL_BYTES", 0)
            monkeypatch.setattr("daskcurate.local_cuda.gpu_names", lambda: [])
            device._uses_gpu.cache_clear()
            with stand_in.installed():
                assert bench.main([*arguments, "--parts", "limits,kmeans,dedup,out-of-core,run"]) == 0
            device._uses_gpu.cache_clear()
    check(figures(tmp_path))
    assert (tmp_path / "gpu.md").read_text() in capsys.readouterr().out


def test_what_there_is_no_time_for_is_named(bench, tmp_path, capsys):
    given = ["--stand-in", "--scale", "0.0001", "--minutes", "0", "--out", str(tmp_path)]
    assert bench.main(given) == 0
    assert [row["what"] for row in figures(tmp_path)] == list(bench.PARTS)
    assert all(row["skipped"] == "no time left" for row in figures(tmp_path))
    assert (tmp_path / "gpu.md").read_text().count("no time left") == len(bench.PARTS)


def test_what_was_measured_is_written_at_once(bench, tmp_path, monkeypatch):
    def cut_off(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "kmeans", cut_off)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--stand-in", "--scale", "0.0001", "--parts", "limits,kmeans", "--out", str(tmp_path)])
    assert {row["what"] for row in figures(tmp_path)} == {"GEMM", "copies"}
    assert (tmp_path / "gpu.md").read_text().count("| GEMM |") == len(bench.SHAPES)


def test_without_a_gpu_it_says_so(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--parts", "kmeans,nothing", "--out", str(tmp_path / "a")])
    assert "--parts nothing: give some of limits, kmeans" in capsys.readouterr().err
    if not bench.gpu_count():
        with pytest.raises(SystemExit):
            bench.main(["--out", str(tmp_path / "a")])
        assert "there is no GPU, or CuPy is not installed" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
