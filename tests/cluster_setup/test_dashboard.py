"""The dashboard of a run, looked at in a real browser: it says what is being done, in words."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Tab, browser, find_browser
from processes import until
from tornado.websocket import websocket_connect

# What the page's bars are drawn from: Bokeh draws text on a canvas.
NAMES = """
(() => {
    const found = [];
    for (const page of window.Bokeh ? Bokeh.documents : [])
        for (const model of page._all_models.values())
            if (model.type == 'ColumnDataSource' && model.data.name && model.data.all)
                found.push(...Array.from(model.data.name));
    return found;
})()
"""


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="there is no chromium or chrome")
def test_tasks_have_names_that_mean_something(tmp_path):
    command = [Path(sys.executable).with_name("daskcurate"), "demo", "--rows", "60000", "--n-workers", "2"]
    command += ["--output", tmp_path / "out"]
    log = tmp_path / "log"
    with log.open("w") as output:
        run = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, cwd=tmp_path)
        try:
            until(lambda: "Dashboard: " in log.read_text(), "the address of the dashboard")
            url = re.search(r"Dashboard: (\S+)", log.read_text()).group(1)
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", url)
            with browser(tmp_path / "profile") as address:
                names, picture = asyncio.run(_look(address, url, run))
        finally:
            run.kill()
            run.wait()
    assert {"load-rows", "kmeans-whole", "kmeans-assign", "dedup-compare"} <= names, names
    for name in names:
        assert re.fullmatch(r"[a-z0-9]+([-_ ][a-z0-9]+)*", name), name
        assert not re.search(r"[0-9a-f]{8}|lambda|call", name), name
    if where := os.environ.get("DASKCURATE_DASHBOARD_PICTURE"):
        Path(where).write_bytes(picture)


async def _look(address, url, run):
    """Return all names that the page shows during the run, and a picture of a stage with many of them."""
    tab = Tab(await websocket_connect(address, max_message_size=1 << 28))
    await tab.open(url, 1280, 720, False)
    while run.poll() is None and not await tab.evaluate("Boolean(window.Bokeh && Bokeh.documents.length)"):
        await asyncio.sleep(1)
        await tab.call("Page.navigate", url=url)  # the page was not served yet
        await asyncio.sleep(2)
    names, most, picture = set(), 0, None
    while run.poll() is None:
        shown = set(await tab.evaluate(NAMES))
        names |= shown
        if "kmeans-assign" in shown and len(shown) > most:
            most, picture = len(shown), await tab.screenshot(False)
        await asyncio.sleep(0.3)
    tab.socket.close()
    return names, picture
