"""A headless Chromium and a JupyterLab for tests, each a process with folders of its own."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket
from conftest import PROJECT

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TOKEN = "only-for-this-test"


def wait_for(what: str, ask: Callable[[], Any], *, seconds: float = 60) -> Any:
    """Ask until the answer is true, and return it; a test fails that waits too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ask():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain for {what}; last answer: {ask()!r}")


@contextmanager
def run_lab(folder: Path) -> Iterator[str]:
    """Run JupyterLab on ``folder``, apart from the user's settings; yield its address."""
    names = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    own = {f"JUPYTER_{name}": str(folder / ".jupyter" / name.lower()) for name in names}
    settings = folder / ".jupyter" / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}  # it would ask, and look them up
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(settings.parents[1])}
    own |= {"IPYTHONDIR": str(folder / ".ipython"), "PYTHONPATH": str(PROJECT)}
    options = ["--no-browser", "--allow-root", "--port=0", "--LabApp.expose_app_in_browser=True"]
    options += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.root_dir", str(folder)]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with (
        (folder / ".lab.log").open("w") as log,
        _running(command, env={**os.environ, **own}, stdout=log, stderr=log),
    ):
        yield wait_for("JupyterLab", lambda: _find_lab(folder))


def _find_lab(folder: Path) -> str | None:
    for path in (folder / ".jupyter" / "runtime_dir").glob("jpserver-*.json"):
        try:
            return json.loads(path.read_text())["url"]
        except ValueError:  # it is being written
            return None
    return None


@contextmanager
def run_browser(folder: Path, *, size: tuple[int, int] = (1400, 1300)) -> Iterator["Page"]:
    """Run a headless Chromium, or skip where there is none; yield its page."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to test in: none of {', '.join(NAMES)} is installed")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*"]
    command += [f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}", "about:blank"]
    told = folder / "DevToolsActivePort"
    with _running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait_for("Chromium", lambda: told.exists() and told.read_text().count("\n") == 1)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        page = Page(tabs[0]["webSocketDebuggerUrl"])
        try:
            yield page
        finally:
            page.close()


@contextmanager
def _running(command: list[str], **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Page:
    """A page of the browser, driven by the DevTools protocol.

    Attributes:
        complaints: Errors on the page so far.
    """

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=60)
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        self.call("Runtime.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"])[:2000])
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    def evaluate(self, code: str) -> Any:
        """Return the value of an expression on the page, waiting for promises."""
        options = {"expression": code, "awaitPromise": True, "returnByValue": True}
        found = self.call("Runtime.evaluate", **options)
        assert "exceptionDetails" not in found, (code, found["exceptionDetails"])
        return found["result"].get("value")

    def execute(self, code: str) -> str:
        """Run code in the kernel of the notebook shown; return what it prints."""
        ask = """(async () => {
            const notebook = [...window.jupyterapp.shell.widgets("main")][0];
            const asked = notebook.sessionContext.session.kernel.requestExecute({ code: %s });
            let text = "";
            asked.onIOPub = ({ header, content }) => {
                if (header.msg_type === "stream") text += content.text;
                if (header.msg_type === "error") text += content.evalue;
            };
            await asked.done;
            return text;
        })()"""
        return self.evaluate(ask % json.dumps(code))

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.drag((x, y), (x, y))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.mouse("mousePressed", *start, button="left", clickCount=1)
        self.mouse("mouseMoved", *end, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()
