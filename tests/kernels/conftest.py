import importlib.util

import numpy as np
import pytest


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


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The array module a kernel is tested on."""
    if request.param == "numpy":
        return np
    return _cupy() or pytest.skip("cupy or a GPU is missing")
