"""Arrays in plain files."""

import fsspec
import numpy as np
import pytest

from daskcurate.store import read_file, write_file


@pytest.mark.parametrize("where", ["local", "memory"])
def test_an_array_in_a_file_is_replaced_whole(tmp_path, where):
    url = f"{tmp_path}/labels/3" if where == "local" else "memory://test-store/labels/3"
    for values in (np.arange(7, dtype=np.int32), np.empty((0, 4), np.float32)):
        write_file(url, values)
        found = read_file(url)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
    fs, path = fsspec.core.url_to_fs(url.rpartition("/")[0])
    assert [name.rpartition("/")[2] for name in fs.ls(path, detail=False)] == ["3"]
