"""A headless Chromium for tests, driven through a pipe: no driver, no port, no package.

Chromium started with --remote-debugging-pipe reads DevTools commands from file descriptor 3 and
answers on 4; each message is JSON followed by a zero byte.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0  # timeout of an answer
Message = dict[str, Any]


def chromium() -> str | None:
    """Path of the browser, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Pipe:
    """Sends commands to a browser and collects its events."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._number = 0
        self.events: list[Message] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> Message:
        """Send a command and return its result; RuntimeError if the browser refuses."""
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next(SECONDS)
            if answer is None:
                raise TimeoutError(f"no answer to {method}")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: Message = answer["result"]
                return result
            self.events.append(answer)

    def wait(
        self, method: str, fits: Callable[[Message], bool] = lambda _: True, after: int = 0
    ) -> Message:
        """Return the first matching event of `events[after:]`, waiting for further ones if needed.

        Returns:
            The event with its `params` and `sessionId`.
        """
        while True:
            for event in self.events[after:]:
                if event["method"] == method and fits(event):
                    return event
            after = len(self.events)
            arrived = self._next(SECONDS)
            if arrived is None:
                raise TimeoutError(f"no {method}")
            self.events.append(arrived)

    def _next(self, seconds: float) -> Message | None:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("the browser has gone")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: Message = json.loads(message)
        return parsed


class Page:
    """An open page, with everything it logs and requests."""

    def __init__(self, pipe: Pipe, width: int = 1000, height: int = 800) -> None:
        self.pipe = pipe
        self.target = pipe.call("Target.createTarget", url="about:blank")["targetId"]
        attached = pipe.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session: str = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def call(self, method: str, **params: Any) -> Message:
        """Send a command to this page."""
        return self.pipe.call(method, self.session, **params)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is loaded."""
        before = len(self.pipe.events)
        self.call("Page.navigate", url=path.as_uri())
        mine = self.session
        self.pipe.wait("Page.loadEventFired", lambda event: event["sessionId"] == mine, before)

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True,
            userGesture=True,
        )  # fmt: skip
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def point(self, selector: str) -> None:
        """Move the mouse to the middle of an element, scrolled into view."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getClientRects()[0];"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def click(self, selector: str) -> None:
        """Press and release the mouse on an element."""
        self.point(selector)
        box = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)})"
            ".getClientRects()[0]; return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left",
                clickCount=1,
            )  # fmt: skip

    def press(self, key: str) -> None:
        """Press a key by name: Tab, ArrowRight, Enter, Escape."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=codes[key],
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Type text into the focused element."""
        self.call("Input.insertText", text=text)

    def prefer(self, **features: str) -> None:
        """Emulate system preferences, color_scheme="dark", and wait until the page is told."""
        names = {f"prefers-{name.replace('_', '-')}": value for name, value in features.items()}
        queries = [f"({name}: {value})" for name, value in names.items()]
        # Listeners are called in the order of their queries, so ours after the page's own.
        self.run(
            f"void (window.told = Promise.all({json.dumps(queries)}.map(q => matchMedia(q))"
            ".map(q => q.matches || new Promise(done => { q.onchange = done; }))))"
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in names.items()],
        )
        self.run("window.told.then(() => true)")

    def trouble(self) -> list[str]:
        """Errors and warnings logged by the page, and exceptions of its scripts."""
        messages = []
        for event in self._events():
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                messages.append(str(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] != "log":
                messages.append(str(params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] != "verbose":
                messages.append(str(params["entry"]["text"]))
        return messages

    def requests(self) -> list[str]:
        """URLs that the page requested, its own included."""
        return [
            str(event["params"]["request"]["url"])
            for event in self._events()
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _events(self) -> Iterator[Message]:
        self.run("0")  # events sent before this answer have arrived
        return (event for event in self.pipe.events if event.get("sessionId") == self.session)


@contextmanager
def browser(folder: Path) -> Iterator[Pipe]:
    """Run a headless Chromium with its profile in `folder`; it is killed at the end."""
    path = chromium()
    assert path is not None
    # Numbers from 10 on, as dup2 to the browser's 3 and 4 might overwrite lower ones.
    pipes = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for _ in range(2) for end in os.pipe()]
    theirs_in, ours_out, ours_in, theirs_out = pipes
    arguments = [
        path, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
        "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
        "--hide-scrollbars", f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, theirs_in, 3),
        (os.POSIX_SPAWN_DUP2, theirs_out, 4),
    ]
    process = os.posix_spawn(path, arguments, os.environ, file_actions=actions, setpgroup=0)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Pipe(ours_out, ours_in)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(ours_out)
        os.close(ours_in)
