"""A real Chromium without a window, driven through a pipe by its DevTools protocol; loopback only.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.servers import PATIENCE

Json = dict[str, object]

_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
)
# Chromium's own numbers for the pipe are 3 and 4.
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_FIRST_FREE = 10
_KEYS = {"Enter": 13, "Tab": 9, " ": 32}


class Browser:
    """A running Chromium."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to = to_browser
        self._from = from_browser
        self._buffer = b""
        self._number = 0
        self.events: deque[Json] = deque()

    def call(self, method: str, session: str | None = None, **parameters: object) -> Json:
        """Send a command and return its result; what happens meanwhile is kept in `events`."""
        number = self.send(method, session, **parameters)
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self._read(deadline)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result = message["result"]
                assert isinstance(result, dict)
                return result
            self._note(message)

    def send(self, method: str, session: str | None = None, **parameters: object) -> int:
        """Send a command without waiting for its result; return its number."""
        self._number += 1
        message: Json = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._number

    def wait(self, method: str, session: str) -> None:
        """Wait for an event."""
        deadline = time.monotonic() + PATIENCE
        while not any(event["method"] == method and event.get("sessionId") == session for event in self.events):
            self._note(self._read(deadline))

    @contextmanager
    def page(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        javascript: bool = True,
    ) -> Iterator["Page"]:
        """Open a page in a window of that size, and wait until it is loaded; it is closed when the context ends."""
        target = str(self.call("Target.createTarget", url="about:blank")["targetId"])
        session = str(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.call(f"{domain}.enable", session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        self.call("Emulation.setScriptExecutionDisabled", session, value=not javascript)
        page = Page(self, session)
        page.load(url)
        try:
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)

    def _note(self, message: Json) -> None:
        if "method" not in message:
            return
        self.events.append(message)
        if message["method"] == "Page.javascriptDialogOpening":  # it would hold up everything
            self.send("Page.handleJavaScriptDialog", str(message["sessionId"]), accept=False)

    def _read(self, deadline: float) -> Json:
        """Return the next message."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, "expected a message from Chromium, which " + ("has ended" if ready else "says nothing")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        assert isinstance(message, dict)
        return message


class Page:
    """An open page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def load(self, url: str) -> None:
        """Go to an address, and wait until the page is loaded."""
        self._browser.events.clear()
        self._browser.call("Page.navigate", self._session, url=url)
        self._browser.wait("Page.loadEventFired", self._session)

    def reload(self) -> None:
        """Load the page again, as the user's key for it does."""
        self._browser.events.clear()
        self._browser.call("Page.reload", self._session)
        self._browser.wait("Page.loadEventFired", self._session)

    def evaluate(self, expression: str) -> object:
        """Return the value of an expression in JavaScript, which works where the page's own scripts are off, too."""
        result = self._browser.call("Runtime.evaluate", self._session, expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        value = result["result"]
        assert isinstance(value, dict)
        return value.get("value")

    def texts(self, selector: str) -> list[str]:
        """Return the texts of the elements that are shown; rows below the window are, as soon as one scrolls."""
        script = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".filter((each) => each.getClientRects().length).map((each) => each.textContent.trim())"
        )
        found = self.evaluate(script)
        assert isinstance(found, list)
        return found

    def click(self, selector: str) -> None:
        """Press the mouse on the middle of the first element that fits."""
        place = self.evaluate(
            f"(() => {{ const each = document.querySelector({json.dumps(selector)});"
            " each.scrollIntoView({block: 'center'}); const box = each.getBoundingClientRect();"
            " return {x: box.left + box.width / 2, y: box.top + box.height / 2}; })()"
        )
        assert isinstance(place, dict)
        for kind in ("mousePressed", "mouseReleased"):
            self._browser.call(
                "Input.dispatchMouseEvent", self._session, type=kind, button="left", clickCount=1, **place
            )

    def press(self, key: str) -> None:
        """Press and release Enter, Tab or the space bar."""
        code = {"key": key, "code": key.replace(" ", "Space"), "windowsVirtualKeyCode": _KEYS[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        down: Json = {**code, "type": "keyDown", **({"text": text} if text else {})}
        self._browser.call("Input.dispatchKeyEvent", self._session, **down)
        self._browser.call("Input.dispatchKeyEvent", self._session, type="keyUp", **code)

    def type(self, text: str) -> None:
        """Type a text into what has the focus."""
        self._browser.call("Input.insertText", self._session, text=text)

    def screenshot(self, *, whole: bool = False) -> bytes:
        """Return a picture of the window as PNG, or of the whole page."""
        data = self._browser.call("Page.captureScreenshot", self._session, captureBeyondViewport=whole)["data"]
        return base64.b64decode(str(data))

    def troubles(self) -> list[str]:
        """Return the errors since the page was loaded.

        Dialogs, exceptions, what the console says, violations of the Content-Security-Policy and other issues that
        Chromium sees, and requests for anything but the page itself.
        """
        self.evaluate("0")  # what was on its way has arrived then
        found = []
        for event in self._browser.events:
            method, parameters = str(event["method"]), event["params"]
            assert isinstance(parameters, dict)
            if event.get("sessionId") != self._session:
                continue
            if method in _TROUBLES or (method == "Network.requestWillBeSent" and parameters["type"] != "Document"):
                found.append(f"{method}: {json.dumps(parameters)}")
        return found


_TROUBLES = {
    "Audits.issueAdded",
    "Log.entryAdded",
    "Page.javascriptDialogOpening",
    "Runtime.consoleAPICalled",
    "Runtime.exceptionThrown",
}


@contextmanager
def running_browser(executable: Path, folder: Path) -> Iterator[Browser]:
    """Run a Chromium with an empty profile in the folder until the context ends."""
    theirs, ours = zip(*(_pipe(reading) for reading in (True, False)), strict=True)
    command: list[str | Path] = [
        sys.executable,
        "-c",
        _START,
        *map(str, theirs),
        executable,
        *_FLAGS,
        f"--user-data-dir={folder}",
    ]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=theirs,
            env={**os.environ, "HOME": str(folder)},
        )
    for number in theirs:
        os.close(number)
    try:
        yield Browser(*ours)
    finally:
        for number in ours:  # Chromium ends when its pipe does
            with suppress(OSError):
                os.close(number)
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pipe(reading: bool) -> tuple[int, int]:  # noqa: FBT001 - private, and called once
    """Return Chromium's end of a pipe, as a descriptor that it does not use itself, and ours."""
    read, write = os.pipe()
    own, other = (read, write) if reading else (write, read)
    number = fcntl.fcntl(own, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    os.close(own)
    return number, other
