"""What the samples say: medians and spread, ratios within a round, and the figures to reach."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.bed import Sample

Results = Mapping[str, Mapping[str, Sequence[Sample]]]
"""By row and subject, one sample a round."""

OURS = "snimux"
ITSELF = "itself"


@dataclass(frozen=True, slots=True)
class Summary:
    """The rounds of one figure: their median, and the lowest and the highest of them.

    Of `confidence`: the median, and between what it lies.
    """

    median: float
    low: float
    high: float


def summary(samples: Sequence[Sample]) -> Summary:
    """Median and range."""
    figures = [sample.figure for sample in samples]
    return Summary(statistics.median(figures), min(figures), max(figures))


def ratio(mine: Sequence[Sample], theirs: Sequence[Sample]) -> float | None:
    """How many times theirs mine is: the median of the rounds' ratios, or None without any.

    Within a round both met the machine in much the same mood, so what drifts cancels out.
    """
    pairs = zip(mine, theirs, strict=False)
    found = [a.figure / b.figure for a, b in pairs if b.figure > 0]
    return statistics.median(found) if found else None


def confidence(values: Sequence[float]) -> Summary:
    """Return the median of at least one value, and the 95 % interval of the median by bootstrap."""
    chance = random.Random(0)  # the same values give the same interval
    medians = [statistics.median(chance.choices(values, k=len(values))) for _ in range(2000)]
    low, *_, high = statistics.quantiles(medians, n=40, method="inclusive")
    return Summary(statistics.median(values), low, high)


@dataclass(frozen=True, slots=True)
class Goal:
    """One of the figures to reach.

    `most` and `aim` are by what a figure is compared with: a peer; another row of snimux's own; or
    `ITSELF`, which compares the figure with nothing.
    """

    title: str
    row: str
    most: Mapping[str, float]
    aim: Mapping[str, float]


GOALS = (
    *(
        Goal(
            f"CPU per GB {way}, 4 streams",
            f"bulk-{way}-4",
            {"nginx": 0.70, "haproxy": 0.65, "traefik": 0.95},
            {"nginx": 0.6},
        )
        for way in ("down", "up")
    ),
    Goal("CPU per round trip, 16 connections", "round-trips-16", {"nginx": 1.6}, {"nginx": 1.2}),
    Goal(
        "CPU per round trip, many connections", "round-trips-2000", {"nginx": 1.15}, {"nginx": 0.9}
    ),
    Goal(
        "CPU per new connection, 517-byte hello",
        "connect-517",
        {"nginx": 2.0, "traefik": 0.7},
        {"nginx": 1.3},
    ),
    Goal("memory of an idle relayed connection, KiB", "rss", {ITSELF: 8}, {ITSELF: 5}),
    Goal(
        "lookup with 100,000 routes against 10",
        "routes-100000",
        {"routes-10": 1.1},
        {"routes-10": 1.03},  # "no difference", as far as one can be seen
    ),
    Goal("p99 first byte beside 4 bulk streams", "first-byte-p99", {"nginx": 1.5}, {"nginx": 1.0}),
)

AIM, MOST, SHORT, UNKNOWN = "aim reached", "within the most", "falls short", "not measured"


@dataclass(frozen=True, slots=True)
class Judged:
    """A goal, what was measured of it, and the verdict."""

    goal: Goal
    measured: Mapping[str, float]
    verdict: str


def judge(goal: Goal, results: Results) -> Judged:
    """Compare what was measured with a goal; what was not measured does not count."""
    measured = {}
    for reference in {**goal.most, **goal.aim}:
        value = _compared(goal.row, reference, results)
        if value is not None:
            measured[reference] = value
    return Judged(goal, measured, verdict(goal, measured))


def _compared(row: str, reference: str, results: Results) -> float | None:
    mine = results.get(row, {}).get(OURS, ())
    if not mine:
        return None
    if reference == ITSELF:
        return summary(mine).median
    own_row = results.get(reference, {}).get(OURS)
    return ratio(mine, own_row or results[row].get(reference, ()))


def verdict(goal: Goal, measured: Mapping[str, float]) -> str:
    """One of the four words."""
    if not measured:
        return UNKNOWN
    # as precise as it is shown
    measured = {key: round(value, 2) for key, value in measured.items()}
    if any(measured[key] > most for key, most in goal.most.items() if key in measured):
        return SHORT
    # An aim that was not measured was not reached.
    if all(key in measured and measured[key] <= aim for key, aim in goal.aim.items()):
        return AIM
    return MOST
