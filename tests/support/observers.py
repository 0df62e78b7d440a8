"""Observers that keep what they hear."""

from snimux.frontend.events import Events, Observer
from snimux.frontend.outcome import Outcome
from snimux.log import Log


class Ends(Observer):
    """Keeps the outcome of each connection that has ended, unless it was worth no word."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes

    def ended(self, outcome: Outcome) -> None:
        if not outcome.is_silent:
            self.outcomes.append(outcome)


def keeping(outcomes: list[Outcome], *observers: Observer, log: Log | None = None) -> Events:
    """Events whose outcomes are kept, and that others hear, too."""
    return Events(log, Ends(outcomes), *observers)
