import importlib.util

import numpy as np
import pytest
import stand_in


def _cupy():
    """CuPy, if it is installed and finds a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        return None
    return cupy


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Searches for counterexamples run on NumPy; on the stand-in, which computes with NumPy, they are slow tests."""
    for item in items:
        on_stand_in = getattr(item, "callspec", None) and item.callspec.params.get("xp") == "stand-in"
        if on_stand_in and hasattr(item.obj, "hypothesis"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", params=["numpy", "stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The array module a kernel is tested on; the stand-in refuses to mix its arrays with NumPy's, as CuPy does."""
    if request.param == "numpy":
        yield np
    elif request.param == "stand-in":
        with stand_in.installed() as module:
            yield module
    else:
        yield _cupy() or pytest.skip("cupy or a GPU is missing")
