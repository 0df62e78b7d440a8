"""``access_log``: the line of each connection, its level, who else is told, and the scanners."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snimux.frontend.access_log import Ends
from snimux.frontend.outcome import Outcome
from snimux.log import Log
from snimux.proto.reason import Reason
from snimux.relay.interface import Tally
from snimux.routing.address import TcpAddress
from snimux.routing.routes import Backend

SCANNERS = [Reason.NO_BYTES, Reason.HTTP, Reason.TLS, Reason.SSH, Reason.SSLV2, Reason.NOISE]
BACKEND = Backend((TcpAddress("127.0.0.1", 8443),))


class Told:
    """What ends were told, and to whom."""

    def __init__(self, *, level: str = "debug", keeps: bool = True) -> None:
        self.stream = io.StringIO()
        self.doubted: list[Backend] = []
        self.kept: list[Outcome] = []
        log = Log(self.stream, form="json", level=level)
        keep = self.kept.append if keeps else None
        self.ends = Ends(log, doubt=self.doubted.append, keep=keep)

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
        *((refused(reason), "debug") for reason in SCANNERS),
    ],
    ids=lambda x: x if isinstance(x, str) else x.reason or x.ended,
)
async def test_each_has_one_line_of_a_level(outcome: Outcome, level: str) -> None:
    told = Told()
    told.ends.report(outcome)
    (line,) = told.lines("connection")
    assert (line["level"], line["ended"]) == (level, outcome.ended)


@pytest.mark.parametrize("keeps", [True, False])
async def test_who_was_refused_is_kept_but_no_scanner(keeps: bool) -> None:
    told = Told(keeps=keeps)
    wanted = refused(Reason.NO_ROUTE)
    for each in (wanted, *map(refused, SCANNERS), Outcome(None, ended="eof")):
        told.ends.report(each)
    assert told.kept == ([wanted] if keeps else [])


@pytest.mark.parametrize(("down", "is_doubted"), [(0, True), (511, True), (512, False)])
async def test_a_backend_that_answered_little_is_doubted(down: int, is_doubted: bool) -> None:
    told = Told()
    told.ends.report(Outcome(None, ended="eof", to=BACKEND, tally=Tally(up=9, down=down)))
    assert told.doubted == ([BACKEND] if is_doubted else [])


async def test_who_had_no_backend_has_nobody_doubted() -> None:
    told = Told()
    told.ends.report(refused(Reason.NO_ROUTE))
    assert not told.doubted


@pytest.mark.parametrize("faults", [{"doubt"}, {"keep"}, {"doubt", "keep"}])
async def test_what_others_raise_is_said_and_the_line_is_there_and_others_are_told(
    faults: set[str],
) -> None:
    told: list[str] = []

    def doubt(backend: Backend) -> None:
        told.append("doubt")
        assert "doubt" not in faults

    def keep(outcome: Outcome) -> None:
        told.append("keep")
        assert "keep" not in faults

    stream = io.StringIO()
    ends = Ends(Log(stream, form="json"), doubt=doubt, keep=keep)
    ends.report(replace(refused(Reason.BACKEND_DOWN), to=BACKEND))
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["connection", *["observer-failed"] * len(faults)]
    assert told == ["doubt", "keep"]


async def test_scanners_are_summed_up_now_and_then_if_any_came(autojump_clock: MockClock) -> None:
    told = Told(level="info")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.ends.sum_up_now_and_then)
        for reason in (Reason.SSH, Reason.HTTP, Reason.SSH):
            told.ends.report(refused(reason))
        await trio.sleep(599)
        assert not told.stream.getvalue()  # neither are they listed
        await trio.sleep(1200)
        (line,) = told.lines("scanners")
        assert {key: line.get(key) for key in ("seconds", "http", "ssh", "tls")} == {
            "seconds": 600, "http": 1, "ssh": 2, "tls": None
        }  # fmt: skip
        nursery.cancel_scope.cancel()
    told.ends.report(refused(Reason.NOISE))
    told.ends.sum_up()  # as in the end
    line = told.lines("scanners")[1]
    assert (line["seconds"], line["noise"]) == (599, 1)
