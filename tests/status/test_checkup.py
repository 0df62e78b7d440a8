"""``status.checkup``: the doctor in a process of its own, bounded and seldom."""

import sys
from typing import Any

import pytest
import trio

from snimux.status import checkup as module
from snimux.status.checkup import Checkup
from tests.support.sockets import open_descriptors

FOUND = {"status": 1, "findings": [{"colour": "red", "title": "x"}], "unseen": ["y"]}


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


async def looked(checkup: Checkup) -> dict[str, Any]:
    """What it tells once it has looked."""
    with trio.fail_after(60):
        while (told := checkup.tell(again=False))["looking"]:
            await trio.sleep(0.01)
    return told


async def having_looked(command: list[str], *, times: int = 1) -> dict[str, Any]:
    async with trio.open_nursery() as nursery:
        checkup = Checkup(command)
        nursery.start_soon(checkup.run)
        for _ in range(times):
            told = await looked(checkup)
            checkup.tell(again=True)
        nursery.cancel_scope.cancel()
    return told


async def test_what_it_prints_is_told() -> None:
    told = await having_looked(python(f"import json; print(json.dumps({FOUND}))"))
    assert {key: told[key] for key in FOUND} == FOUND
    assert (told["fault"], told["looking"]) == ("", False)
    assert told["age"] >= 0


async def test_of_very_much_the_worst_is_told_and_the_rest_counted() -> None:
    colours = ["green"] * 150 + ["red", "yellow"]
    found = {"status": 1, "findings": [{"colour": x} for x in colours], "unseen": ["y"] * 150}
    told = await having_looked(python(f"import json; print(json.dumps({found}))"))
    assert [x["colour"] for x in told["findings"]] == ["red", "yellow"] + ["green"] * 98
    assert (told["left_out"], len(told["unseen"])) == (52, 100)


async def test_nothing_is_looked_at_until_somebody_wants_to_know() -> None:
    async with trio.open_nursery() as nursery:
        checkup = Checkup(python("raise SystemExit('was run')"))
        nursery.start_soon(checkup.run)
        await trio.testing.wait_all_tasks_blocked()
        assert (checkup.looked, checkup.fault) == (None, "")
        told = checkup.tell(again=False)
        assert (told["looking"], told["age"], told["findings"]) == (True, None, [])
        nursery.cancel_scope.cancel()


async def test_it_rests_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    checkup = Checkup(python(f"import json; print(json.dumps({FOUND}))"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkup.run)
        first = await looked(checkup)
        for again in (False, True):
            assert not checkup.tell(again=again)["looking"]
        monkeypatch.setattr(module, "_REST", -1.0)
        assert not checkup.tell(again=False)["looking"]
        assert checkup.tell(again=True)["looking"]
        await looked(checkup)
        monkeypatch.setattr(module, "_OLD", -1.0)
        assert checkup.tell(again=False)["looking"]
        assert first["fault"] == ""
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (python("raise SystemExit('snimux: --route: no')"), "snimux: --route: no"),
        (python("raise SystemExit(3)"), "it ended with status 3"),
        (python("print('{}')"), "it ended with status 0"),
        (python("print([])"), "it ended with status 0"),
        (python("print('[' * 100_000)"), "RecursionError"),
        (["/does/not/exist"], "it was not started: No such file or directory"),
        ([], "it was not started: there is no command"),
    ],
)
async def test_where_it_finds_nothing_it_is_said_why(command: list[str], fault: str) -> None:
    told = await having_looked(command)
    assert (told["fault"].partition("(")[0], told["findings"]) == (fault, [])


async def test_it_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    told = await having_looked(python("import time; time.sleep(1000)"))
    assert told["fault"] == "it took longer than 0.05 s"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_what_it_says_without_end_is_not_kept(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST", 2**20)
    before = open_descriptors()
    told = await having_looked(python(f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"))
    assert told["fault"] == "it said more than 1 MiB"
    assert open_descriptors() == before


async def test_it_is_handed_nothing_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    own = "[x for x in os.environ if x.startswith(('LISTEN_', 'NOTIFY_', 'WATCHDOG_', 'KEPT'))]"
    script = f"import json, os; print(json.dumps({FOUND} | {{'unseen': {own}}}))"
    told = await having_looked(python(script))
    assert told["unseen"] == ["KEPT"]
