"""The cluster on GPUs, with dask-cuda replaced by what records how it is called: none of it needs a GPU."""

import contextlib
import importlib.util
import sys
import types

import pytest

from cluster_setup.local_cuda import local_cuda
from daskcurate import local_cuda as cuda
from daskcurate.cli import main
from daskcurate.local_cluster import LocalClusterConfig

OPTIONS = {
    "CUDA_VISIBLE_DEVICES", "n_workers", "threads_per_worker", "memory_limit", "device_memory_limit",
    "local_directory", "rmm_pool_size", "rmm_allocator_external_lib_list",
}  # fmt: skip
"""Those that dask-cuda 26.10's LocalCUDACluster names and we give; all others go to Dask's LocalCluster."""


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes this a machine with GPUs; what is started is in its ``started``."""
    started = []

    def cluster(**options):
        import dask

        started.append(options | {"saturation": dask.config.get("distributed.scheduler.worker-saturation")})
        return contextlib.nullcontext(types.SimpleNamespace())

    def make(count, installed=("cupy", "dask_cuda", "rmm")):
        plain = importlib.util.find_spec
        known = ("cupy", "dask_cuda", "rmm", "torch")
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (name in installed or None) if name in known else plain(name),
        )
        error = type("NVMLError", (Exception,), {})

        def init():
            if not count:
                raise error

        nvml = types.SimpleNamespace(nvmlInit=init, nvmlDeviceGetCount=lambda: count, NVMLError=error)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setitem(sys.modules, "dask_cuda", types.SimpleNamespace(LocalCUDACluster=cluster))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return started

    return make


def test_a_worker_a_gpu_with_one_pool_of_memory(machine, tmp_path):
    started = machine(2)
    spill = tmp_path / "a" / "spill"
    with cuda.start_local_cuda(cuda.LocalCudaConfig(memory_limit="2GiB", spill_folder=spill)):
        pass
    (found,) = started
    assert found["CUDA_VISIBLE_DEVICES"] == ["0", "1"]
    assert found["n_workers"] == 2
    assert found["memory_limit"] == 2 << 30
    assert found["device_memory_limit"] == found["rmm_pool_size"] == 0.8
    assert found["rmm_allocator_external_lib_list"] == ["cupy"]
    assert found["local_directory"] == str(spill)
    assert found["dashboard_address"].startswith("127.0.0.1:")
    assert found["saturation"] == 1.0
    others = set(found) - OPTIONS - {"saturation"}
    assert others == {"dashboard_address", "scheduler_port", "preload"}


def test_torch_shares_the_pool_and_without_rmm_there_is_none(machine):
    started = machine(1, ("cupy", "dask_cuda", "rmm", "torch"))
    with cuda.start_local_cuda(cuda.LocalCudaConfig()):
        pass
    assert started[0]["rmm_allocator_external_lib_list"] == ["cupy", "torch"]
    started = machine(1, ("cupy", "dask_cuda"))
    with (
        cuda.start_local_cuda(cuda.LocalCudaConfig()),
        cuda.start_local_cuda(cuda.LocalCudaConfig(rmm_pool=0)),
    ):
        pass
    assert not any("rmm_pool_size" in found for found in started[1:])


def test_the_host_s_memory_is_shared_by_the_workers(machine):
    started = machine(4)
    with cuda.start_local_cuda(cuda.LocalCudaConfig()):
        pass
    assert started[0]["memory_limit"] == LocalClusterConfig(n_workers=4).memory()


@pytest.mark.parametrize(
    ("text", "names"), [("0,2", ["0", "2"]), ("", []), ("-1", []), ("1,-1,0", ["1"]), ("GPU-ab", ["GPU-ab"])]
)
def test_visible_devices_are_those_of_the_environment(machine, monkeypatch, text, names):
    machine(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert cuda.gpu_names() == names


def test_no_gpu_without_a_driver_or_the_extra(machine):
    machine(0)
    assert cuda.gpu_names() == []
    machine(3, ("cupy",))
    assert cuda.gpu_names() == []
    machine(3)
    assert cuda.gpu_names() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("count", "installed", "options", "phrase"),
    [
        (1, ("dask_cuda",), {}, "not installed: cupy; install daskcurate.gpu-cu12. or daskcurate.gpu-cu13."),
        (0, ("cupy", "dask_cuda"), {}, "this machine has none that the NVIDIA driver shows"),
        (2, ("cupy", "dask_cuda"), {"n_workers": 3}, "n_workers=3 is not allowed: there are 2 GPUs"),
        (2, ("cupy", "dask_cuda"), {"devices": [1], "n_workers": 2}, "there are 1 GPUs"),
    ],
)
def test_what_is_not_there_is_said_before_anything_starts(machine, count, installed, options, phrase):
    started = machine(count, installed)
    with pytest.raises(cuda.NoGpuError, match=phrase):
        cuda.start_local_cuda(cuda.LocalCudaConfig(**options))
    assert not started


@pytest.mark.parametrize(
    ("arguments", "error", "phrase"),
    [
        ({"n_workers": 0}, ValueError, "n_workers=0 is not allowed"),
        (
            {"devices": "0,1"},
            TypeError,
            "devices='0,1' is not allowed: give numbers or UUIDs of GPUs, or None",
        ),
        ({"devices": []}, ValueError, r"devices=\[\] is not allowed"),
        ({"devices": [1.5]}, TypeError, "is not allowed"),
        ({"memory_limit": "lots"}, ValueError, "memory_limit='lots' is not allowed"),
        ({"device_memory_limit": 2}, ValueError, "device_memory_limit=2"),
        ({"rmm_pool": "all"}, TypeError, "rmm_pool='all'"),
        ({"dashboard_address": "localhost"}, ValueError, "dashboard_address='localhost'"),
        ({"scheduler_port": -1}, ValueError, "scheduler_port=-1"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, phrase):
    with pytest.raises(error, match=phrase):
        local_cuda(**arguments)


def test_which_cluster_a_command_starts(machine, monkeypatch):
    started, on_cpu = machine(2), []
    monkeypatch.setattr(cuda, "start_local_cluster", on_cpu.append)
    config = LocalClusterConfig(n_workers=8, memory_limit="3GiB")
    cuda.start_on("cpu", config)
    assert on_cpu == [config]
    with cuda.start_on("auto", config):
        pass
    assert started[-1]["n_workers"] == 2
    assert started[-1]["memory_limit"] == 3 << 30
    assert started[-1]["threads_per_worker"] == 4
    with pytest.raises(cuda.NoGpuError, match="n_workers=8"):
        cuda.start_on("gpu", config)
    machine(0)
    cuda.start_on("auto", config)
    assert on_cpu == [config, config]


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--device", "gpu"], "a GPU is asked for, but"),
        (["--device", "tpu"], "'tpu' is not one of auto, cpu, gpu"),
        (["--device", "gpu", "--scheduler", "tcp://127.0.0.1:1"], "--device is for a local cluster"),
    ],
)
def test_the_command_line_refuses(arguments, phrase, capsys, tmp_path, monkeypatch, machine):
    machine(0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["demo", *arguments])
    assert stop.value.code == 2
    assert phrase in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_run_on_the_gpus_of_this_machine(tmp_path):
    pytest.importorskip("dask_cuda")
    if not cuda.gpu_names():
        pytest.skip("a GPU is missing")
    import numpy as np

    import daskcurate as dc
    from daskcurate.device import uses_gpu
    from daskcurate.kernels.assign import unit_rows

    x = unit_rows(np.random.default_rng(0).standard_normal((20_000, 64)))
    with local_cuda(dashboard_address=None) as client:
        assert all(client.run(uses_gpu).values())
        emb = dc.ingest(x, tmp_path / "pool.zarr", normalize=True)
        flat = dc.kmeans(emb, 50, metric="cosine", init="random", n_iters=5)
        found, kept = dc.compute(flat, dc.semantic_dedup(emb, flat, eps=0.3), store=tmp_path / "run.zarr")
    assert int(found.sizes.sum()) == len(x)
    assert 0 < len(kept) <= len(x)


def test_a_module_that_only_stands_in_for_cupy_is_no_gpu(monkeypatch):
    import sys
    import types

    module = types.ModuleType("cupy")
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "cupy", module)
    assert cuda.gpu_names() == []
