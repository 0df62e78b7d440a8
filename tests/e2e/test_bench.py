"""The harness of ``python -m bench`` works; what it says of speed is not for a test to judge."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("rich")

from bench import caddy, figures, names, plot, proc, rounds, slices, subjects
from bench.bed import Bed, Busy, Sample, percentile
from bench.effort import FULL, QUICK
from bench.figures import AIM, ITSELF, MOST, SHORT, UNKNOWN, Goal
from bench.load import LoadError, RoundTrips
from bench.subjects import SUBJECTS, Subject
from bench.works import Row, groups
from snimux.proto import client_hello
from snimux.proto.verdict import Hello

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def samples(*values: float) -> list[Sample]:
    return [Sample("row", value, 1.0, Busy(0.1, 0.2, 0.3)) for value in values]


def python(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


@linux
def test_a_small_run_gives_a_table_json_and_charts(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = python(
        *("-m", "bench"),
        *("--quick", "--only", "connect", "--subjects", "direct,snimux", "--scale", "0.05"),
        *("--rounds", "2", "--json", str(file), "--svg", str(tmp_path), "--show-configs"),
    )
    assert done.returncode == 0, done.stderr
    assert "517-byte hello" in done.stdout
    assert "--- snimux: snimux.toml" in done.stdout
    assert "did not work" not in done.stdout
    assert "snimux" in (tmp_path / "connect.svg").read_text("utf-8")
    whole = json.loads(file.read_text("utf-8"))
    assert set(whole["subjects"]) == {"direct", "snimux"}
    assert "hosts" in whole["subjects"]["snimux"]["configuration"]["snimux.toml"]
    assert set(whole["rows"]) == {"connect-chrome", "connect-517"}
    for row in whole["rows"].values():
        for found in row["subjects"].values():
            assert len(found["rounds"]) == 2
            assert 0 < found["low"] <= found["median"] <= found["high"]
            assert found["busy"][0]["client"] > 0
    assert {each["verdict"] for each in whole["figures_to_reach"]} == {UNKNOWN}


@linux
def test_a_subject_that_is_missing_is_named_and_left_out() -> None:
    nothing_found = "from bench import subjects; subjects.find_program = lambda name: None"
    arguments = ["--quick", "--only=round-trips,caddy", "--subjects=direct,nginx", "--scale=0.05"]
    run = f"{nothing_found}; from bench.__main__ import main; main({arguments})"
    done = python("-c", run)
    assert done.returncode == 0, done.stderr
    assert "left out: nginx: no program 'nginx'" in done.stdout
    assert "left out: caddy: no program 'caddy'" in done.stdout
    assert "direct" in done.stdout


def test_why_a_subject_is_missing() -> None:
    absent = Subject("absent", "no-such-program-here", (), (), "")
    assert subjects.missing(absent) == "no program 'no-such-program-here'"
    no_flag = Subject("new", sys.executable, (), (), "", flag="--no-such-flag")
    assert subjects.missing(no_flag) == "snimux has no --no-such-flag"


def test_an_unknown_subject_is_an_error() -> None:
    done = python("-m", "bench", "--subjects", "direct,nothing-like-it")
    assert done.returncode == 2
    assert "no subject 'nothing-like-it'" in done.stderr


def test_schedstat_and_stat_are_read() -> None:
    assert proc.parse_schedstat("1500000000 46504 17\n") == 1.5
    ticks = os.sysconf("SC_CLK_TCK")
    text = f"42 (a) b (c)) R 1 1 1 0 -1 4194304 101 0 0 0 {2 * ticks} {ticks} 0 0 20 0 1 0 5 6 7\n"
    assert proc.parse_stat(text) == 3.0


@linux
def test_processor_time_and_memory_of_this_process() -> None:
    before = proc.cpu_seconds([os.getpid()])
    sum(range(10**6))
    assert proc.cpu_seconds([os.getpid()]) > before > 0
    assert proc.resident([os.getpid()]) > 2**20
    assert proc.family(os.getpid())[0] == os.getpid()


def test_a_summary_is_median_and_range() -> None:
    assert figures.summary(samples(3, 1, 2)) == figures.Summary(2, 1, 3)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    # each round is twice its pair, but for one that something else disturbed
    assert figures.ratio(samples(2, 40, 6), samples(1, 20, 1)) == 2
    assert figures.ratio(samples(1), samples()) is None
    assert figures.ratio(samples(1), samples(0)) is None


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ({"nginx": 1.0, "traefik": 0.5}, AIM),
        ({"nginx": 1.3, "traefik": 0.7}, AIM),
        ({"nginx": 1.304, "traefik": 0.704}, AIM),  # as precise as it is shown
        ({"nginx": 1.9, "traefik": 0.5}, MOST),
        ({"nginx": 1.0, "traefik": 0.8}, SHORT),
        ({"nginx": 2.1}, SHORT),
        ({"traefik": 0.5}, MOST),  # what the aim is about is not there
        ({}, UNKNOWN),
    ],
)
def test_verdicts(measured: dict[str, float], verdict: str) -> None:
    goal = Goal("connect", "connect-517", {"nginx": 2.0, "traefik": 0.7}, {"nginx": 1.3})
    assert figures.verdict(goal, measured) == verdict


def test_a_goal_may_be_about_a_peer_another_row_or_nothing_else() -> None:
    results = {
        "routes-10": {"snimux": samples(10, 20), "nginx": samples(1, 1)},
        "routes-100000": {"snimux": samples(11, 22), "nginx": samples(22, 44)},
    }
    for reference, value in (("routes-10", 1.1), ("nginx", 0.5), (ITSELF, 16.5)):
        goal = Goal("", "routes-100000", {reference: 2.0}, {})
        assert figures.judge(goal, results).measured == {reference: pytest.approx(value)}
    missing = Goal("", "rss", {ITSELF: 8}, {"haproxy": 1})
    assert figures.judge(missing, results).verdict == UNKNOWN


def test_every_goal_is_about_a_row_that_the_quick_run_has() -> None:
    for effort in (QUICK, FULL):
        rows = {row.key for group in groups(effort) for case in group for row in case.rows}
        for goal in figures.GOALS:
            assert goal.row in rows
            assert {*goal.most, *goal.aim} <= {*subjects.NAMES, *rows, ITSELF}


def tree_with(tmp_path: Path, prelude: str) -> Path:
    """A copy of snimux that does something else first."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "snimux", tree / "snimux")
    program = tree / "snimux" / "__main__.py"
    program.write_text(prelude + program.read_text("utf-8"), "utf-8")
    return tree


@linux
def test_two_versions_are_compared_each_as_it_is_in_its_tree(tmp_path: Path) -> None:
    mark = (
        "import pathlib, sys; pathlib.Path(__file__).with_name('ran').write_text(str(sys.argv))\n"
    )
    tree = tree_with(tmp_path, mark)
    done = python("-m", "bench.compare", str(tree), "--scale=0.05", "--status=before")
    assert done.returncode == 0, done.stderr
    assert "--status" in (tree / "snimux" / "ran").read_text("utf-8")
    assert f"before: {tree} --status" in done.stdout
    assert f"after: {ROOT} \n" in done.stdout
    for row in ("connection, 517", "trip, 16", "trip, 100 conn", "GB down, 4", "GB up, 4"):
        numbers = re.search(rf"{row}.*?│(.*)", done.stdout)
        assert numbers, done.stdout
        before, after, ratio, low, high, turns = map(float, re.findall(r"[\d.]+", numbers[1]))
        assert before > 0
        assert after > 0
        assert low <= ratio <= high
        assert turns >= 1


@linux
def test_a_version_that_does_not_start_is_named(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "raise SystemExit('out of order')\n")
    done = python("-m", "bench.compare", str(tree), "--scale=0.05", "--only=connect")
    assert done.returncode == 1
    assert f"before ({tree}) did not start: ended: out of order" in done.stderr
    assert "Traceback" not in done.stderr


@linux
def test_a_directory_without_snimux_is_an_error(tmp_path: Path) -> None:
    done = python("-m", "bench.compare", str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path} has no snimux" in done.stderr


@linux
def test_no_round_trip_is_under_way_when_its_run_is_over(tmp_path: Path) -> None:
    with Bed(tmp_path) as bed, RoundTrips(bed.ports[names.ECHOES], 4) as load:
        for _ in range(2):
            assert load.run(0.02) >= 4
            assert not select.select(load.sockets, [], [], 0.2)[0]


def test_slices_come_in_an_order_that_is_reversed_by_turns() -> None:
    order: list[str] = []

    def burst(name: str) -> int:
        order.append(name)
        return len(order)

    results = slices.in_turns({name: partial(burst, name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert results == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_who_comes_first_does_not_count_in_the_ratio_of_slices() -> None:
    # mine is twice theirs, but a burst right after one of the same subject costs half as much
    mine, theirs = samples(2, 1, 2, 1), samples(0.5, 1, 0.5, 1)
    assert slices.ratios(mine, theirs) == pytest.approx([2, 2])


def test_slices_in_which_a_proxy_did_not_run_are_left_out() -> None:
    assert slices.ratios(samples(0, 1, 3, 3), samples(1, 1, 1, 1)) == [3]
    assert slices.ratios(samples(1, 1, 3, 3), samples(1, 0, 1, 1)) == [3]


def test_a_median_lies_within_its_interval_and_few_outliers_do_not_move_it() -> None:
    values = [*(1 + n / 1000 for n in range(-10, 11)), 5.0, 7.0]
    found = figures.confidence(values)
    assert 0.99 < found.low <= found.median <= found.high < 1.01
    assert figures.confidence([2.0]) == figures.Summary(2, 2, 2)


def test_each_round_begins_with_another_subject() -> None:
    group = groups(QUICK)[0]
    steps = rounds.plan([group], SUBJECTS, 3)
    order = [subject.name for _, subject, _ in steps]
    size = len(SUBJECTS)
    firsts = [order[number * size] for number in range(3)]
    assert firsts == [subject.name for subject in SUBJECTS[:3]]
    assert sorted(order[:size]) == sorted(order[size : 2 * size])


@pytest.mark.parametrize("mode", [*names.MODES, names.SECURE])
@pytest.mark.parametrize(("slug", "size"), [("curl", 517), ("chromium", 1955)])
def test_the_hellos_are_real_and_ask_for_the_backend(slug: str, size: int, mode: str) -> None:
    data = names.hello(slug, mode)
    verdict = client_hello.peek(data)
    assert len(data) == size
    assert isinstance(verdict, Hello)
    assert verdict.name == names.host(mode)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_configuration_has_every_route_and_nothing_unfilled(subject: Subject) -> None:
    ports = dict.fromkeys([*names.MODES, names.SECURE], 4711)
    files = subjects.configuration(subject, 443, "/somewhere", ports, names.routes(12))
    whole = "\n".join(files.values())
    assert not re.search(r"@\{", whole)
    if files:
        assert len(re.findall(r"host\\?-\d\S*customers", whole)) >= 7
        assert "443" in whole


def test_what_h2load_says() -> None:
    said = (
        "finished in 1.02s, 980.39 req/s, 9.51MB/s\n"
        "status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx\n"
        "time to 1st byte:    16.50ms     88.00ms     50.52ms     20.00ms    60.00%\n"
    )
    seen = caddy.parse(said, 1000)
    assert seen.rate == 980.39
    assert seen.first_byte == pytest.approx(0.05052)
    with pytest.raises(LoadError):
        caddy.parse(said, 1001)
    with pytest.raises(LoadError):
        caddy.parse("", 1)


def test_a_chart_has_a_bar_for_each_but_direct() -> None:
    row = Row("row", "work", "Work & play", "all", "µs")
    found = {"snimux": samples(1, 2), "nginx": samples(4, 5), "direct": samples(9, 9)}
    drawn = plot.chart([row], {"row": found})
    assert drawn.count("<rect") == 2
    assert "Work &amp; play" in drawn
    assert "direct" not in drawn


def test_percentiles() -> None:
    values = [float(number) for number in range(101)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
