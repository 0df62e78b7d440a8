"""``providers.directory``: each file is read when it rests, and one that is wrong is one alone."""

import os
import random
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from snimux.config.from_toml import LARGEST
from snimux.providers.base import Claim, Fault, Lost, News, Snapshot
from snimux.providers.directory import DirectoryProvider, Look, look
from snimux.routing.access import Access
from snimux.routing.address import DirectoryAddress, TcpAddress, UnixAddress
from snimux.routing.networks import parse_networks
from snimux.routing.routes import Backend, Route, parse_pattern, targets


def route(*hosts: str, port: int = 1) -> str:
    return f'[[route]]\nhosts = {list(hosts)}\nto = "127.0.0.1:{port}"\n'


def patterns(found: Look | Snapshot) -> list[str]:
    snapshot = found.snapshot if isinstance(found, Look) else found
    return [str(route.pattern) for route in snapshot.routes]


def faults(found: Look) -> dict[str, str]:
    return {fault.what: fault.why for fault in found.snapshot.faults}


def rested(path: Path, before: Look | None) -> Look:
    """Look until everything rests, as is done while somebody writes."""
    found = look(str(path), before)
    for _ in range(9):
        if found.rests:
            return found
        found = look(str(path), found)
    raise AssertionError("it never rests")


# --- what is in a file


def test_a_file_has_what_a_route_of_the_configuration_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        """[[route]]
hosts = ["a.example", "*.a.example/h2"]
to = ["unix//run/a.sock", { address = "127.0.0.1:2", weight = 3 }]
proxy = "v2"
http = "127.0.0.1:80"
http_proxy = "v1"
balance = "round_robin"
wait = "off"
check = "tls"
allow = ["192.0.2.0/24", "unix"]
[[route]]
hosts = "plain.example"
http = "127.0.0.1:81"
"""
    )
    found = look(str(tmp_path), None)
    assert faults(found) == {"a.toml": found.snapshot.faults[0].why}
    assert "cannot be for *.a.example/h2" in found.snapshot.faults[0].why  # as in the configuration
    text = (tmp_path / "a.toml").read_text()
    (tmp_path / "a.toml").write_text(text.replace(', "*.a.example/h2"', ""))
    found = rested(tmp_path, found)
    assert not faults(found)
    how = {"balance": "round_robin", "wait": 0.0, "check": "tls"}
    addresses = (UnixAddress("/run/a.sock"), TcpAddress("127.0.0.1", 2))
    backend = Backend(addresses, "v2", (1, 3), **how)  # type: ignore[arg-type]
    http = Backend((TcpAddress("127.0.0.1", 80),), "v1", **how)  # type: ignore[arg-type]
    access = Access(allow=parse_networks(["192.0.2.0/24", "unix"]))
    assert found.snapshot.routes == (
        Route(parse_pattern("a.example"), targets(tls=backend, http=http), access),
        Route(
            parse_pattern("plain.example"),
            targets(http=Backend((TcpAddress("127.0.0.1", 81),))),
        ),
    )
    assert found.snapshot.written == {
        parse_pattern("a.example"): f"route 1 of {tmp_path}/a.toml",
        parse_pattern("plain.example"): f"route 2 of {tmp_path}/a.toml",
    }


def test_only_names_that_end_in_toml_and_are_not_hidden_are_read(tmp_path: Path) -> None:
    for name in ("b.toml", "a.toml", ".hidden.toml", "a.toml~", "a.toml.swp", "notes"):
        (tmp_path / name).write_text(route(f"x{abs(hash(name))}.example"))
    (tmp_path / "a.toml").write_text(route("a.example"))
    (tmp_path / "b.toml").write_text(route("b.example"))
    found = look(str(tmp_path), None)
    assert patterns(found) == ["a.example", "b.example"]


def test_a_pattern_of_two_files_is_the_first_ones_by_name_and_the_other_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "20.toml").write_text(route("a.example", "b.example", port=20))
    (tmp_path / "10.toml").write_text(route("a.example", port=10))
    found = look(str(tmp_path), None)
    assert found.snapshot.claims == (
        Claim("a.example", f"{tmp_path}/10.toml", f"{tmp_path}/20.toml"),
    )
    ports = {str(x.pattern): str(x.targets["tls"]) for x in found.snapshot.routes}
    assert ports == {"a.example": "127.0.0.1:10", "b.example": "127.0.0.1:20"}
    (tmp_path / "10.toml").unlink()
    found = rested(tmp_path, found)
    assert not found.snapshot.claims
    assert {str(x.targets["tls"]) for x in found.snapshot.routes} == {"127.0.0.1:20"}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_fifo, "is a FIFO and not a regular file"),
        (Path.mkdir, "Is a directory"),
        (_endless, "is a character device and not a regular file"),
        (_nowhere, "No such file or directory"),
        (_loop, "Too many levels of symbolic links"),
        (_large, "is larger than 16 MiB"),
        (lambda path: path.write_bytes(b"\xff\xfe#"), "not UTF-8, so not TOML"),
        (lambda path: path.write_text("[[route]\n"), "not TOML: "),
        (lambda path: path.write_text('to = "x:1"'), "unknown key 'to'; such a file has only"),
        (lambda path: path.write_text("[[rout]]\n"), "unknown key 'rout'; did you mean route?"),
        (lambda path: path.write_text('[[route]]\nhosts = "a.example"\n'), "to is missing"),
        (lambda path: path.write_text(2 * route("a.example")), "route 2: the pattern a.example is"),
        (lambda path: path.write_text("[[route]]\n" * 1000), "and 1995 more"),
        (lambda path: path.write_text("a" + ".a" * 99999 + "=1"), "nested too deep"),
    ],
)  # fmt: skip
def test_a_bad_file_leaves_the_others_in_effect_and_is_named(
    tmp_path: Path, make: object, why: str
) -> None:
    (tmp_path / "a.toml").write_text(route("good.example"))
    (tmp_path / "c.toml").write_text(route("better.example"))
    make(tmp_path / "b.toml")  # type: ignore[operator]
    found = look(str(tmp_path), None)
    assert patterns(found) == ["good.example", "better.example"]
    assert {x.what for x in found.snapshot.faults} == {"b.toml"}
    assert any(why in x.why for x in found.snapshot.faults)
    assert len(found.snapshot.faults) <= 6
    assert rested(tmp_path, found).snapshot is found.snapshot


def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "a.toml").write_text(route("good.example"))
    (tmp_path / "b.toml").write_text(route("b.example"))
    (tmp_path / "b.toml").chmod(0)
    assert faults(look(str(tmp_path), None)) == {"b.toml": "Permission denied"}
    tmp_path.chmod(0)
    with pytest.raises(PermissionError):
        look(str(tmp_path), None)
    tmp_path.chmod(0o700)


def test_a_name_that_would_act_on_a_terminal_is_spelt_out(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J.toml").write_text("?")
    assert [*faults(look(str(tmp_path), None))] == [r"\x1b[2J.toml"]


@pytest.mark.skipif(sys.platform == "darwin", reason="APFS has no names that are not UTF-8")
def test_a_name_that_is_not_utf_8_is_spelt_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.toml")).write_text(route("a.example"))
    found = look(str(tmp_path), None)
    assert [*found.snapshot.written.values()] == [rf"route 1 of {tmp_path}/\udcff.toml"]


# --- what changes


def test_a_file_is_read_when_it_has_been_the_same_twice(tmp_path: Path) -> None:
    found = look(str(tmp_path), None)
    assert (patterns(found), found.rests) == ([], True)
    file = tmp_path / "a.toml"
    half, rest = route("a.example"), route("b.example")
    file.write_text(half)  # which is good TOML
    found = look(str(tmp_path), found)
    assert (patterns(found), found.rests) == ([], False)
    file.write_text(half + rest)
    found = look(str(tmp_path), found)
    assert (patterns(found), found.rests) == ([], False)
    found = look(str(tmp_path), found)
    assert (patterns(found), found.rests) == (["a.example", "b.example"], True)


def test_one_that_is_written_without_end_holds_up_no_other(tmp_path: Path) -> None:
    log, other = tmp_path / "a.toml", tmp_path / "b.toml"
    log.write_text(route("a.example"))
    found = look(str(tmp_path), None)
    other.write_text(route("b.example"))
    for number in range(5):
        log.write_text(route("a.example") + f"# {'x' * number}\n")
        found = look(str(tmp_path), found)
        assert not found.rests
    assert patterns(found) == ["a.example", "b.example"]


def test_a_file_that_becomes_wrong_keeps_its_routes_and_gets_new_ones_when_mended(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(route("a.example"))
    (tmp_path / "b.toml").write_text(route("b.example"))
    found = look(str(tmp_path), None)
    for broken in ('[[route]]\nhosts = "a.exa', "="):
        file.write_text(broken)
        found = rested(tmp_path, found)
        assert patterns(found) == ["a.example", "b.example"]
        assert [*faults(found)] == ["a.toml"]
    file.write_text(route("c.example"))
    found = rested(tmp_path, found)
    assert (patterns(found), faults(found)) == (["c.example", "b.example"], {})


def test_a_file_that_vanishes_takes_its_routes_along_once_it_stays_away(tmp_path: Path) -> None:
    file, away = tmp_path / "a.toml", tmp_path / "a.toml~"
    file.write_text(route("a.example"))
    found = look(str(tmp_path), None)
    file.rename(away)  # as an editor does for a moment
    found = look(str(tmp_path), found)
    assert (patterns(found), found.rests) == (["a.example"], False)
    away.rename(file)
    found = rested(tmp_path, found)
    assert patterns(found) == ["a.example"]
    file.unlink()
    found = rested(tmp_path, found)
    assert patterns(found) == []


def test_a_link_above_all_files_is_exchanged_as_kubernetes_does(tmp_path: Path) -> None:
    """A ConfigMap: name -> ..data/name, and ..data -> a directory for each version."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def version(name: str, **files: str) -> None:
        directory = mount / f"..{name}"
        directory.mkdir()
        for file, text in files.items():
            (directory / f"{file}.toml").write_text(text)
        (mount / "..data_tmp").symlink_to(directory.name)
        (mount / "..data_tmp").rename(mount / "..data")
        for file in files:
            if not (mount / f"{file}.toml").is_symlink():
                (mount / f"{file}.toml").symlink_to(f"..data/{file}.toml")

    version("one", a=route("a.example"), b=route("b.example"))
    found = look(str(mount), None)
    assert (patterns(found), faults(found)) == (["a.example", "b.example"], {})
    version("two", a=route("b.example"), b=route("a.example"), c=route("c.example"))
    shutil.rmtree(mount / "..one")
    found = rested(mount, found)
    assert (patterns(found), faults(found)) == (["b.example", "a.example", "c.example"], {})
    assert not found.snapshot.claims


def test_a_thousand_files_are_read_and_one_that_changes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1000):
        (tmp_path / f"{number:04}.toml").write_text(route(f"{number}.example"))
    found = look(str(tmp_path), None)
    assert patterns(found) == [f"{number}.example" for number in range(1000)]
    assert rested(tmp_path, found).snapshot is found.snapshot
    (tmp_path / "0500.toml").write_text(route("changed.example"))
    read: list[str] = []

    def recording(path: str, limit: int) -> bytes:
        read.append(Path(path).name)
        return Path(path).read_bytes()

    monkeypatch.setattr("snimux.providers.directory.files.read", recording)
    found = rested(tmp_path, found)
    assert read == ["0500.toml"]
    assert patterns(found)[499:502] == ["499.example", "changed.example", "501.example"]


def test_more_files_than_somebody_writes_are_not_read_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snimux.providers.directory._MOST_FILES", 3)
    for name in "abcde":
        (tmp_path / f"{name}.toml").write_text(route(f"{name}.example"))
    found = look(str(tmp_path), None)
    assert patterns(found) == ["a.example", "b.example", "c.example"]
    assert "2 more files" in faults(found)["*.toml"]
    (tmp_path / "e.toml").unlink()
    found = rested(tmp_path, found)
    assert "1 more files" in faults(found)["*.toml"]
    (tmp_path / "d.toml").unlink()
    assert faults(rested(tmp_path, found)) == {}


def test_whatever_happens_to_files_what_rests_is_what_is_there(tmp_path: Path) -> None:
    """Random changes between looks; once all rests, it is as a first look would find it."""
    random_ = random.Random(7)
    found: Look | None = None
    for _ in range(300):
        for _ in range(random_.randrange(3)):
            file = tmp_path / f"{random_.choice('abc')}.toml"
            match random_.randrange(4):
                case 0:
                    file.unlink(missing_ok=True)
                case 1:
                    file.write_text(route(*random_.sample(["x.test", "y.test", "z.test"], 2)))
                case 2:
                    (tmp_path / "new").write_text(route(f"{random_.randrange(3)}.test"))
                    (tmp_path / "new").replace(file)
                case 3:
                    file.write_text("")
        found = look(str(tmp_path), found)
    found = rested(tmp_path, rested(tmp_path, found))
    assert found.snapshot == look(str(tmp_path), None).snapshot


# --- the provider


@asynccontextmanager
async def providing(
    path: Path,
) -> AsyncIterator[tuple[DirectoryProvider, trio.MemoryReceiveChannel[News]]]:
    send, news = trio.open_memory_channel[News](0)
    provider = DirectoryProvider(DirectoryAddress(str(path)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(provider.provide, send.send)
        yield provider, news
        nursery.cancel_scope.cancel()


async def test_a_directory_may_come_and_go(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    directory = tmp_path / "routes"
    async with providing(directory) as (_, news):
        assert await news.receive() == Lost("No such file or directory")
        directory.mkdir()
        assert await news.receive() == Snapshot()
        (directory / "a.toml").write_text(route("a.example"))
        snapshot = await news.receive()
        assert isinstance(snapshot, Snapshot)
        assert patterns(snapshot) == ["a.example"]
        shutil.rmtree(directory)
        assert await news.receive() == Lost("No such file or directory")
        directory.write_text("a file, now")
        assert await news.receive() == Lost("Not a directory")
        directory.unlink()
        directory.mkdir()
        (directory / "a.toml").write_text(route("a.example"))
        found = [await news.receive() for _ in range(3)][-1]
        assert found == snapshot


async def test_what_is_looked_for_now_is_published_within_a_refresh(tmp_path: Path) -> None:
    async with providing(tmp_path) as (provider, news):
        first = await news.receive()
        assert first == Snapshot()
        (tmp_path / "a.toml").write_text(route("a.example"))
        provider.poll_now()
        found = await news.receive()
        assert isinstance(found, Snapshot)
        assert patterns(found) == ["a.example"]


async def test_the_same_is_published_as_the_same_value(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    (tmp_path / "a.toml").write_text(route("a.example"))
    (tmp_path / "b.toml").write_text("?")
    async with providing(tmp_path) as (_, news):
        first = await news.receive()
        for _ in range(3):
            assert await news.receive() is first
        assert isinstance(first, Snapshot)
        assert [fault.what for fault in first.faults] == ["b.toml"]
        assert isinstance(first.faults[0], Fault)
