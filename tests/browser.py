"""A headless chromium or chrome, driven over its DevTools protocol: what a page does in a real browser."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser():
    """Path of the browser, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def browser(profile):
    """Start a browser and yield the address of its first page's DevTools."""
    command = [
        find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _address(profile / "DevToolsActivePort", process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _address(file, process):
    for _ in range(600):
        assert process.poll() is None, "the browser ended at once"
        if file.exists() and file.read_text().strip():
            port = file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise AssertionError("the browser did not start")


class Tab:
    """A page in the browser: its errors, its requests, and what scripts find in it."""

    def __init__(self, socket):
        self.socket, self.number = socket, 0
        self.errors, self.requests, self.seen = [], [], []

    async def call(self, method, **parameters):
        self.number += 1
        await self.socket.write_message(
            json.dumps({"id": self.number, "method": method, "params": parameters})
        )
        while True:
            message = await self._next()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    async def _next(self):
        message = json.loads(await asyncio.wait_for(self.socket.read_message(), 60))
        method, found = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(found["exceptionDetails"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.errors.append(found["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.errors.append(str(found["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        self.seen.append(method)
        return message

    async def open(self, url, width, height, dark):
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self.seen:
            await self._next()

    async def evaluate(self, script):
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def screenshot(self, whole):
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])


def look_at(address, url, scripts, *, width=1280, height=900, dark=False, picture=None):
    """Open ``url``; return (errors, requests, what each of ``scripts`` found), and write a screenshot if asked."""

    async def work():
        tab = Tab(await websocket_connect(address, max_message_size=1 << 28))
        await tab.open(url, width, height, dark)
        found = [await tab.evaluate(script) for script in scripts]
        if picture is not None:
            tall = await tab.evaluate("document.documentElement.scrollHeight")
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=min(tall, 16000), deviceScaleFactor=1,
                mobile=width < 600,
            )  # fmt: skip
            picture.write_bytes(await tab.screenshot(True))
        tab.socket.close()
        return tab.errors, tab.requests, found

    return asyncio.run(work())
