"""``access_log``: the line of each connection, its level, backends that change, and scanners."""

import io
import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snimux.frontend.access_log import AccessLog
from snimux.frontend.outcome import Outcome
from snimux.log import Log
from snimux.proto.reason import Reason
from snimux.routing.address import TcpAddress

SCANNERS = [reason for reason in Reason if reason.is_scanner]


class Logged:
    """An access log, and its lines."""

    def __init__(self, *, level: str = "debug") -> None:
        self.stream = io.StringIO()
        self.access_log = AccessLog(Log(self.stream, form="json", level=level))

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]


def refused(reason: Reason) -> Outcome:
    return Outcome(("192.0.2.1", 1), ended="refused", reason=reason)


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome(None, ended="eof"), "info"),
        (Outcome(None, ended="failed", detail="as of a bug"), "error"),
        (refused(Reason.NO_ROUTE), "info"),
        (refused(Reason.BACKEND_DOWN), "warning"),
        (refused(Reason.OUT_OF_RESOURCES), "warning"),
        *((refused(reason), "debug") for reason in sorted(SCANNERS)),
    ],
    ids=lambda x: x if isinstance(x, str) else x.reason or x.ended,
)
async def test_each_has_one_line_of_a_level(outcome: Outcome, level: str) -> None:
    logged = Logged()
    logged.access_log.ended(outcome)
    (line,) = logged.lines("connection")
    assert (line["level"], line["ended"]) == (level, outcome.ended)


async def test_who_is_closed_without_a_word_has_no_line() -> None:
    logged = Logged()
    logged.access_log.ended(Outcome(("192.0.2.1", 1), ended="shutdown", is_silent=True))
    assert not logged.lines("connection")


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_backend_that_changes_has_a_line(is_up: bool) -> None:
    logged = Logged()
    logged.access_log.backend_changed(TcpAddress("127.0.0.1", 8443), is_up, "as it is")
    (line,) = logged.lines("backend")
    assert (line["backend"], line["detail"]) == ("127.0.0.1:8443", "as it is")
    assert (line["state"], line["level"]) == (("up", "info") if is_up else ("down", "warning"))


async def test_scanners_are_summed_up_now_and_then_if_any_came(autojump_clock: MockClock) -> None:
    logged = Logged(level="info")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logged.access_log.sum_up_now_and_then)
        for reason in (Reason.SSH, Reason.HTTP, Reason.SSH):
            logged.access_log.ended(refused(reason))
        await trio.sleep(599)
        assert not logged.stream.getvalue()  # neither are they listed
        await trio.sleep(1200)
        (line,) = logged.lines("scanners")
        assert {key: line.get(key) for key in ("seconds", "http", "ssh", "tls")} == {
            "seconds": 600, "http": 1, "ssh": 2, "tls": None
        }  # fmt: skip
        nursery.cancel_scope.cancel()
    logged.access_log.ended(refused(Reason.NOISE))
    logged.access_log.sum_up()  # as in the end
    line = logged.lines("scanners")[1]
    assert (line["seconds"], line["noise"]) == (599, 1)
