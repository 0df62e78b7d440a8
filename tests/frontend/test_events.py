"""``events``: who hears what, in which order, and what comes of a fault."""

import io
import json
from collections.abc import Callable

import pytest

from snimux.frontend.events import Events, InEffect, Observer
from snimux.frontend.outcome import Outcome
from snimux.log import Log
from snimux.routing.address import DialAddress, TcpAddress
from tests.support.generations import configured, in_effect

ADDRESS = TcpAddress("127.0.0.1", 1)
EVENTS: dict[str, Callable[[Observer], None]] = {
    "accepted": lambda x: x.accepted(Outcome(None)),
    "ended": lambda x: x.ended(Outcome(None)),
    "dial_failed": lambda x: x.dial_failed(ADDRESS, True),
    "backend_changed": lambda x: x.backend_changed(ADDRESS, False, "it is down"),
    "in_effect": lambda x: x.in_effect(in_effect(configured())),
}


class Everything(Observer):
    """Hears everything, and raises then if it is to."""

    def __init__(self, name: str, heard: list[str], *, raises: bool = False) -> None:
        self.name = name
        self.heard = heard
        self.raises = raises

    def hear(self, event: str) -> None:
        self.heard.append(f"{self.name} {event}")
        if self.raises:
            raise RuntimeError(self.name)

    def accepted(self, outcome: Outcome) -> None:
        self.hear("accepted")

    def ended(self, outcome: Outcome) -> None:
        self.hear("ended")

    def dial_failed(self, address: DialAddress, is_for_client: bool) -> None:
        self.hear("dial_failed")

    def backend_changed(self, address: DialAddress, is_up: bool, why: str) -> None:
        self.hear("backend_changed")

    def in_effect(self, generation: InEffect) -> None:
        self.hear("in_effect")


@pytest.mark.parametrize("event", EVENTS)
def test_all_hear_it_in_order_and_those_who_register_later_from_then_on(event: str) -> None:
    heard: list[str] = []
    events = Events(None, Everything("one", heard), Everything("two", heard))
    EVENTS[event](events)
    events.register(Everything("three", heard))
    EVENTS[event](events)
    assert heard == [f"{name} {event}" for name in ("one", "two", "one", "two", "three")]


@pytest.mark.parametrize("event", EVENTS)
def test_what_one_raises_is_logged_and_the_others_hear_it_all_the_same(event: str) -> None:
    heard: list[str] = []
    stream = io.StringIO()
    faulty = Everything("one", heard, raises=True)
    EVENTS[event](Events(Log(stream, form="json"), faulty, Everything("two", heard)))
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["event"]) == ("error", "observer-failed")
    assert (line["observer"], line["detail"]) == (f"Everything.{event}", "RuntimeError('one')")
    assert heard == [f"one {event}", f"two {event}"]


def test_who_has_no_use_for_an_event_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(Observer):
        pass

    events = Events(None, Quiet())

    def never(*event: object) -> None:
        raise AssertionError("called")

    for event in EVENTS:
        monkeypatch.setattr(Quiet, event, never, raising=True)
    for happens in EVENTS.values():
        happens(events)
