"""The pages in a real browser: no error, no request to anywhere, pictures there, usable on a phone."""

import numpy as np
import pytest
from browser import browser, find_browser, look_at
from distributed import Client

import daskcurate as dc
from daskcurate.report.choices import EpsPage, KPage

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no chromium or chrome on the path"),
]
PICTURES = "[...document.images].map(one => one.complete && one.naturalWidth > 0)"
DRAWINGS = "[...document.querySelectorAll('figure svg')].map(one => one.getBoundingClientRect().width)"
WIDTH = "document.documentElement.scrollWidth"
OUTSIDE = """[...document.querySelectorAll('main *')].filter(
  one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.wide') && !one.closest('svg')
).map(one => one.outerHTML.slice(0, 100))"""
COLOURS = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
SMALLEST = """Math.min(...[...document.querySelectorAll('figure svg text')].map(
  one => one.getBoundingClientRect().height).filter(height => height > 0))"""
ANCHORS = (
    "[...document.querySelectorAll('nav a')].every(one => document.querySelector(one.getAttribute('href')))"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(run_folder, written, small_run, tmp_path_factory, cluster):
    folder = tmp_path_factory.mktemp("pages")
    store, pool = run_folder / "run.zarr", run_folder / "pool.zarr"
    texts, images = run_folder / "texts.txt", run_folder / "images.npy"
    emb = dc.open_embeddings(pool)
    with Client(cluster) as client:
        eps = dc.choose_eps(emb, [0.01, 0.1], sample_size=300, n_clusters=15, client=client)
        k = dc.choose_k(emb, [2, 5, 20], client=client)
    return {
        "both": written,
        "texts": dc.write_report(store, folder / "texts", texts=texts),
        "ids": dc.write_report(small_run / "run.zarr", folder / "ids"),
        "eps": EpsPage(emb, folder / "eps", texts, images).write(eps),
        "k": KPage(emb, folder / "k").write(k),
    }


@pytest.mark.parametrize("name", ["both", "texts", "ids", "eps", "k"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_a_page(address, pages, name, width, dark):
    scripts = [PICTURES, DRAWINGS, WIDTH, OUTSIDE, COLOURS, SMALLEST, ANCHORS]
    url = pages[name].as_uri()
    errors, requests, found = look_at(address, url, scripts, width=width, dark=dark)
    pictures, drawings, page_width, outside, (ink, ground), smallest, anchors = found
    assert errors == []
    assert url in requests
    assert all(request.startswith(("file://", "data:")) for request in requests)
    assert all(pictures)
    assert (len(pictures) > 20) == (name in ("both", "eps"))
    assert len(drawings) >= 1
    assert all(200 < one <= width for one in drawings)
    assert page_width == width
    assert outside == []
    assert anchors
    brightness = [np.mean([int(part) for part in colour[4:-1].split(",")]) for colour in (ink, ground)]
    assert (brightness[0] > 180) == dark
    assert (brightness[1] < 60) == dark
    assert smallest >= 9  # pixels, of the text in pictures
