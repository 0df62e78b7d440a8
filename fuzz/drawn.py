"""The search by Hypothesis: goes where ``check`` says that bytes got further; needs no wheel.

What it finds it makes small before it says it.
"""

from random import Random

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.target import Target


def search(target: Target, runs: int, seed: int = 0) -> None:
    """Bend what there is to begin with so many times.

    Args:
        target: what is to be true.
        runs: how many times it is looked at.
        seed: the same seed makes the same search.

    Raises:
        AssertionError: or whatever else ``check`` raises; Hypothesis prints for what bytes.
    """

    @hypothesis.seed(seed)
    @settings(
        max_examples=runs,
        database=None,
        deadline=None,  # how long it takes is no finding
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(target.seeds()), st.randoms(use_true_random=False), st.integers(0, 4))
    def is_true_of(data: bytes, random: Random, changes: int) -> None:
        for _ in range(changes):
            data = target.mutate(data, random)
        hypothesis.note(f"the bytes: {data!r}")
        hypothesis.target(float(target.check(data)))

    is_true_of()
