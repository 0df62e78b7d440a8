"""``fuzz``: what its targets say is true of all that was found, and of some more each time.

The search here is short and always the same; ``make fuzz`` searches for as long as it may.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fuzz import drawn, minimise
from fuzz.target import Target
from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


@EACH
def test_it_is_true_of_all_that_was_found(target: Target) -> None:
    assert target.kept()
    for path in target.kept():
        assert path.stat().st_size <= target.max_size
        target.check(path.read_bytes())


@EACH
def test_it_is_true_of_all_there_is_to_begin_with(target: Target) -> None:
    for data in target.given():
        target.check(data)


@EACH
def test_a_short_search_finds_nothing(target: Target) -> None:
    drawn.search(target, 200)


@EACH
def test_what_is_to_be_reached_is_reached(target: Target) -> None:
    """By some of what there is to begin with: a few bytes do not lead everywhere."""
    reached = set().union(*(minimise.reached(target, data) for data in [*target.given()][:50]))
    lines = minimise.lines_of(target)
    assert {file for file, _ in lines} == {file for file, _, _ in reached}


def test_a_search_finds_what_is_not_true() -> None:
    def check(data: bytes) -> int:
        assert b"Host: [::1]:80" not in data
        return len(data)

    seeds = [b"GET / HTTP/1.1\r\n\r\n"]
    target = replace(TARGETS["http_head"], name="none", check=check, given=lambda: seeds)
    with pytest.raises(AssertionError):
        drawn.search(target, 2000)


def test_what_reaches_something_new_is_kept_and_nothing_else(tmp_path: Path) -> None:
    target = replace(TARGETS["http_head"], name="none", given=lambda: [b"GET / HTTP/1.1\r\n\r\n"])
    for name, data in (("same", b"PUT / HTTP/1.1\r\n\r\n"), ("new", b"\x16\x03\x01")):
        tmp_path.joinpath(name).write_bytes(data)
    steps = minimise.reached(target, b"\x16\x03\x01")
    assert steps - minimise.reached(target, b"PUT / HTTP/1.1\r\n\r\n")
    assert {(file, line) for file, _, line in steps} <= minimise.lines_of(target)
    found = minimise.new(target, tmp_path)
    assert found == [b"\x16\x03\x01"]


def test_the_command_searches_replays_and_knows_its_targets(tmp_path: Path) -> None:
    def fuzz(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fuzz", *args]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
        )

    searched = fuzz("http_head", "--hypothesis", "--runs", "20", "--seed", "1")
    assert (searched.stdout, searched.returncode) == ("http_head: 20 runs by Hypothesis\n", 0)
    (tmp_path / "bytes").write_bytes(b"GET / HTTP/1.0\r\n\r\n")
    replayed = fuzz("http_head", "--replay", str(tmp_path / "bytes"))
    assert (replayed.stdout, replayed.returncode) == ("http_head: 1001\n", 0)
    assert "there are client_hello, http_head" in fuzz("nonsense").stderr
