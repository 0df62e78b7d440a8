"""``log``: one line for each thing, whatever is in it, and never an error."""

import contextlib
import io
import json
import math
import os
import resource
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from snimux.log import LEVELS, Field, Level, Log, json_line, logfmt


def test_logfmt_quotes_only_what_needs_it() -> None:
    line = logfmt({"a": 1, "b": "x y", "c": 'say "hi"', "d": None, "e": 0.25, "f": "", "g": "k=v"})
    assert line == r'a=1 b="x y" c="say \"hi\"" e=0.25 f="" g="k=v"'


@given(st.text(max_size=60))
def test_no_value_breaks_out_of_its_field(text: str) -> None:
    for render in (logfmt, json_line):
        line = render({"before": "x", "detail": text, "after": 1})
        assert line.isascii()
        assert line.isprintable()
    assert json.loads(json_line({"detail": text})) == {"detail": text}
    fields = shlex.split(logfmt({"detail": text, "after": 1}))
    assert len(fields) == 2
    assert fields[-1] == "after=1"


@pytest.mark.parametrize("level", LEVELS)
def test_lines_below_the_level_are_left_out(level: Level) -> None:
    stream = io.StringIO()
    log = Log(stream, form="json", level=level)
    for each in LEVELS:
        log.write(each, "thing", {"n": 1})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == list(LEVELS[LEVELS.index(level) :])
    assert list(lines[0]) == ["time", "level", "event", "n"]
    assert lines[0]["time"].endswith("Z")


class BrokenStream(io.StringIO):
    def write(self, text: str, /) -> int:
        raise BrokenPipeError


def test_a_pipe_that_nobody_reads_loses_lines_and_says_how_many() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as stream:
        log = Log(stream, form="json")
        for number in range(2000):
            log.write("info", "thing", {"n": number, "detail": "x" * 200})
        os.set_blocking(reader, False)
        written = len(read.read().splitlines())
        assert 10 < written < 2000
        log.write("info", "thing", {"n": 2000})
        lost, last = (json.loads(line) for line in read.read().splitlines())
    assert (lost["event"], lost["lines"]) == ("lines-lost", 2000 - written)
    assert last["n"] == 2000


@contextlib.contextmanager
def full_disk_after(size: int) -> Iterator[None]:
    """No file of this process can be longer meanwhile, as if there were no more room for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("size", range(2000, 2120, 7))
def test_a_full_disk_loses_whole_lines_and_says_how_many(
    tmp_path: Path, size: int, batches: bool
) -> None:
    with (tmp_path / "log").open("a") as stream:
        log = Log(stream, form="json")
        log.batches = batches
        with full_disk_after(size):
            for number in range(1000):
                log.write("info", "thing", {"n": number})
            log.flush()
        for number in range(1000, 1010):
            log.write("info", "thing", {"n": number})
        log.flush()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (lost,) = [each for each in lines if each["event"] == "lines-lost"]
    numbers = [each["n"] for each in lines if each is not lost]
    before = len(numbers) - 10
    assert numbers == [*range(before), *range(1000, 1010)]
    assert lost["lines"] == 1000 - before
    assert lines.index(lost) == before


def test_what_is_long_is_cut_so_that_a_line_is_written_whole() -> None:
    hostile = "\0" * 70_000
    fields: dict[str, Field] = {
        "client": "x",
        "name": "n" * 253,
        "alpn": hostile,
        "detail": hostile,
    }
    for render in (logfmt, json_line):
        assert len(render(fields)) < 4096
    assert json.loads(json_line({"detail": "y" * 301}))["detail"] == "y" * 297 + "..."


def test_a_stream_that_cannot_be_written_to_loses_the_line_only() -> None:
    Log(BrokenStream()).write("error", "thing", {})
    closed = io.StringIO()
    closed.close()
    Log(closed).write("error", "thing", {})


class CountingStream(io.StringIO):
    writes = 0

    def write(self, text: str, /) -> int:
        self.writes += 1
        return super().write(text)


def test_a_batch_is_one_write_in_order() -> None:
    stream = CountingStream()
    log = Log(stream, form="json")
    log.batches = True
    for number in range(50):
        log.write("info", "thing", {"n": number})
    assert stream.getvalue() == ""
    log.flush()
    assert stream.writes == 1
    assert [json.loads(line)["n"] for line in stream.getvalue().splitlines()] == list(range(50))
    log.flush()
    assert stream.writes == 1


def test_a_batch_does_not_grow_without_bound() -> None:
    stream = CountingStream()
    log = Log(stream, form="json")
    log.batches = True
    for number in range(1000):
        log.write("info", "thing", {"n": number})
    assert len(stream.getvalue().splitlines()) > 900
    assert stream.writes < 20


def test_a_batch_reaches_a_pipe_in_whole_lines() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as stream:
        log = Log(stream, form="json")
        log.batches = True
        for number in range(2000):
            log.write("info", "thing", {"n": number, "detail": "x" * 200})
        log.flush()
        os.set_blocking(reader, False)
        written = [json.loads(line)["n"] for line in read.read().splitlines()]
        assert written == list(range(len(written)))
        assert 10 < len(written) < 2000
        log.write("info", "thing", {"n": 2000})
        log.flush()
        lost, last = (json.loads(line) for line in read.read().splitlines())
    assert (lost["event"], lost["lines"]) == ("lines-lost", 2000 - len(written))
    assert last["n"] == 2000


def test_a_line_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("snimux.log.time.monotonic", lambda: now)
    stream = io.StringIO()
    log = Log(stream)
    log.batches = True
    log.write("info", "thing", {})
    now += 0.05
    log.write("info", "thing", {})
    log.flush_if_due()
    assert not stream.getvalue()
    now += 0.06
    log.flush_if_due()
    assert len(stream.getvalue().splitlines()) == 2


def test_every_line_of_a_worker_has_its_number() -> None:
    stream = io.StringIO()
    log = Log(stream, worker=2)
    log.write("info", "one", {"key": "value"})
    assert stream.getvalue().endswith(" event=one key=value worker=2\n")


def test_form_and_level_can_change() -> None:
    stream = io.StringIO()
    log = Log(stream, level="error")
    log.write("info", "thing", {"n": 1})
    log.change(form="json", level="debug")
    log.write("debug", "thing", {"n": 2})
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["n"] == 2


async def test_lines_are_written_when_the_loop_is_about_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snimux.log._LONGEST_WAIT", math.inf)  # however slow this machine is
    stream = io.StringIO()
    log = Log(stream)
    with log.batching():
        log.write("info", "first", {})
        await trio.lowlevel.checkpoint()  # another has its turn at once: there is no wait
        log.write("info", "second", {})
        assert not stream.getvalue()
        await wait_all_tasks_blocked(0.01)
        assert stream.getvalue().count("\n") == 2
        log.write("info", "third", {})
    assert stream.getvalue().count("\n") == 3  # also where the loop has not waited since
    log.write("info", "fourth", {})
    assert stream.getvalue().count("\n") == 4  # at once


async def test_lines_are_not_kept_for_long_where_there_is_always_something_to_do() -> None:
    stream = io.StringIO()
    log = Log(stream)
    with log.batching():
        log.write("info", "first", {})
        with trio.fail_after(60):
            while not stream.getvalue():
                await trio.lowlevel.checkpoint()
    assert stream.getvalue().count("\n") == 1
