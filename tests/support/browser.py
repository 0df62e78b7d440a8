"""A real browser that a test drives: headless Chromium, by the Chrome DevTools Protocol.

Over a pair of pipes (``--remote-debugging-pipe``), so it needs no port and no library.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trio

from tests.support.clients import environment

# Chromium reads commands from descriptor 3 and writes answers and events to 4.
_AS_3_AND_4 = """\
import fcntl, os, sys
# away from 3 and 4, where they may be already, and the other way round
here, there = (fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3])
os.dup2(here, 3)
os.dup2(there, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-extensions",
    # a small /dev/shm, as in many containers, would crash it
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
    # no look-ups, and no way to the world
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

PATIENCE = 60.0
"""Seconds for whatever it is waited for: the machine may be busy."""


def missing() -> bool:
    """Whether there is no Chromium here."""
    return shutil.which("chromium") is None


class Browser:
    """One Chromium, and what it says; it may be talked to in one event loop after the other."""

    def __init__(self, to: int, of: int) -> None:
        self.descriptors = to, of
        self.numbers = count(1)
        self.answers: dict[int, trio.Event | dict[str, Any]] = {}
        self.tabs: dict[str, Tab] = {}
        self.buffer = b""

    @contextlib.asynccontextmanager
    async def attached(self) -> AsyncIterator["Browser"]:
        """Talk to it, from this event loop; its tabs are closed in the end."""
        self.to, self.of = (trio.lowlevel.FdStream(os.dup(each)) for each in self.descriptors)
        self.one_at_a_time = trio.Lock()
        async with self.to, self.of, trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            yield self
            for tab in self.tabs.values():
                await self.call("Target.closeTarget", targetId=tab.target)
            self.tabs.clear()
            nursery.cancel_scope.cancel()

    async def call(self, method: str, session: str | None = None, **params: object) -> Any:
        """Have it do something; what it answers."""
        number = next(self.numbers)
        done = self.answers[number] = trio.Event()
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        with trio.fail_after(PATIENCE):
            async with self.one_at_a_time:
                await self.to.send_all(json.dumps(message).encode() + b"\0")
            await done.wait()
        answer = self.answers.pop(number)
        assert isinstance(answer, dict)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    async def _listen(self) -> None:
        async for data in self.of:
            *messages, self.buffer = (self.buffer + data).split(b"\0")
            for message in map(json.loads, messages):
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("sessionId") in self.tabs and "method" in message:
            self.tabs[message["sessionId"]].events.append(message)
        waiting = self.answers.get(message.get("id", 0))
        if isinstance(waiting, trio.Event):
            self.answers[message["id"]] = message
            waiting.set()

    async def tab(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> "Tab":
        """A new tab, of that size."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        session = attached["sessionId"]
        tab = self.tabs[session] = Tab(self, target["targetId"], session)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            await tab.call(f"{domain}.enable")
        await tab.resize(width, height, dark=dark)
        return tab


@dataclass
class Tab:
    """One page in it."""

    browser: Browser
    target: str
    session: str
    events: list[dict[str, Any]] = field(default_factory=list)

    async def call(self, method: str, **params: object) -> Any:
        """Have something done in this tab."""
        return await self.browser.call(method, self.session, **params)

    async def resize(self, width: int, height: int, *, dark: bool) -> None:
        """Be a screen of that size, of somebody who likes it light or dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        await self.prefer(color_scheme="dark" if dark else "light")

    async def prefer(self, **wishes: str) -> None:
        """Be somebody with these wishes, and no others: ``reduced_motion="reduce"``."""
        features = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in wishes.items()
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def open(self, url: str) -> None:
        """Go somewhere."""
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        await self.until(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    async def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str, wanted: object = True) -> None:
        """Wait until an expression has a value."""
        value = None
        with trio.move_on_after(PATIENCE):
            while (value := await self.run(script)) != wanted:
                await trio.sleep(0.05)
            return
        raise AssertionError(f"{script}: {value!r}, not {wanted!r}")

    async def names(self) -> set[tuple[str, str]]:
        """What assistive technology is told is there: each with its role and its name."""
        tree = await self.call("Accessibility.getFullAXTree")
        return {
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree["nodes"]
            if not node["ignored"]
        }

    async def press(self, key: str) -> None:
        """Press a key of the keyboard."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}
        text = "\r" if key == "Enter" else ""
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    async def picture(self, *, whole: bool = True) -> bytes:
        """What is seen, as PNG; all of it, or the first screen."""
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=whole, **(
            {"clip": {**(await self.run("({x: 0, y: 0, width: innerWidth, "
                                        "height: document.documentElement.scrollHeight})")),
                      "scale": 1}} if whole else {}
        ))  # fmt: skip
        return base64.b64decode(taken["data"])

    def asked(self) -> list[str]:
        """The address of each request that the page made."""
        sent = (x for x in self.events if x["method"] == "Network.requestWillBeSent")
        return [each["params"]["request"]["url"] for each in sent]

    def complaints(self) -> list[str]:
        """What went wrong, by the console."""
        wrong = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                wrong.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] != "log":
                wrong.append(json.dumps(params["args"]))
            elif event["method"] == "Log.entryAdded":
                wrong.append(json.dumps(params["entry"]))
        return wrong


@contextlib.contextmanager
def started() -> Iterator[Browser]:
    """A browser without a past; gone in the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        commands_in, commands = os.pipe()
        answers, answers_out = os.pipe()
        args = ["chromium", *_FLAGS, f"--user-data-dir={home}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-c", _AS_3_AND_4, str(commands_in), str(answers_out), *args],
            pass_fds=(commands_in, answers_out),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment(Path(home)), start_new_session=True,
        )  # fmt: skip
        os.close(commands_in)
        os.close(answers_out)
        try:
            yield Browser(commands, answers)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(commands)
            os.close(answers)
