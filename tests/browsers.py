"""Headless Chromium for the tests."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.servers import free_port


class Browser:
    """Headless Chromium over the WebDriver protocol."""

    def __init__(self, port: int, folder: Path) -> None:
        self._base = f"http://127.0.0.1:{port}"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1200,1000",
            f"--user-data-dir={folder}",
        ]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": options},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self.post("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{answer['sessionId']}"

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path) -> None:
        self.post("/url", {"url": path.as_uri()})

    def run(self, script: str) -> Any:
        """What `script` returns, two frames after it ran."""
        settle = f"const done = arguments[0]; const value = (() => {{ {script} }})();"
        wait = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(value), 20)));"
        return self.post("/execute/async", {"script": settle + wait, "args": []})

    def view(self) -> tuple[float, float]:
        one, other = self.run("const p = document.getElementById('plots').dataset; return [p.from, p.to]")
        return float(one), float(other)

    def drag(self, begin: int, end: int) -> None:
        """With the mouse, over the first plot; pixels from its middle."""
        self.run("document.querySelector('canvas').scrollIntoView({block: 'center'})")
        element = self.post("/element", {"using": "css selector", "value": "canvas"})
        steps = [("pointerMove", begin), ("pointerDown", 0), ("pointerMove", end), ("pointerUp", 0)]
        moves = [
            {"type": kind, "x": x, "y": 0, "origin": element, "duration": 20}
            if kind == "pointerMove"
            else {"type": kind, "button": 0}
            for kind, x in steps
        ]
        self.post("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def press(self, key: str) -> None:
        keys = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def problems(self) -> list[str]:
        """What the console complained of."""
        return [line["message"] for line in self.post("/se/log", {"type": "browser"}) if line["level"] != "INFO"]

    def close(self) -> None:
        with suppress(OSError), urllib.request.urlopen(urllib.request.Request(self._base, method="DELETE"), timeout=20):
            pass


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser for the time of a `with`; skips the test where there is none."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    port = free_port()
    process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        browser = Browser(port, folder)
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait(20)
