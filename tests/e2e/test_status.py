"""``status.api``, by ``--status``: real processes, whose figures are what was sent."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from snimux.providers.merge import Plan
from snimux.routing.address import TcpAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from snimux.service.generation import Current
from snimux.status.api import Answers, Figures, Uptime, pages
from snimux.status.checkup import Checkup
from snimux.status.events import all_pages, shown
from snimux.status.local import Local
from snimux.status.metrics import Metrics, snapshot
from snimux.status.web import Page
from tests.e2e.test_serve import client_hello, held_up, workers_of
from tests.service import test_upgrade
from tests.status.test_prometheus import OPENMETRICS, Samples, read, samples
from tests.support import muxes
from tests.support.caddy import free_port, short_directory
from tests.support.generations import Process, configured, in_effect
from tests.support.muxes import Mux

WORKERS = pytest.mark.parametrize("workers", [1, 2])
NEEDS_PROMTOOL = pytest.mark.needs(
    lambda: not shutil.which("promtool"), "needs promtool: apt-get install prometheus"
)
DOCS = Path(__file__).parents[2] / "docs"


@dataclass
class Watched:
    """A snimux whose status can be asked for, and the backend of a.test and b.test."""

    mux: Mux
    status: tuple[str, int] | str
    down: tuple[str, str]
    """Where nobody listens: the only address of down.test, and the first one of second.test."""
    backend: str

    async def fetch(self, path: str, accept: str = "*/*") -> tuple[int, bytes]:
        """A page: its status and its body."""
        if isinstance(self.status, str):
            stream: trio.SocketStream = await trio.open_unix_socket(self.status)
        else:
            stream = await trio.open_tcp_stream(*self.status)
        client, body = h11.Connection(h11.CLIENT), bytearray()
        async with stream:
            headers = [("Host", "localhost"), ("Accept", accept)]
            request = h11.Request(method="GET", target=path, headers=headers)
            await stream.send_all(client.send(request) or b"")
            status = 0
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    client.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
        return status, bytes(body)

    async def samples(self) -> Samples:
        status, text = await self.fetch("/metrics", OPENMETRICS)
        assert status == 200
        return samples(read(text, "application/openmetrics-text; version=1.0.0"))

    async def json(self, path: str) -> Any:
        status, text = await self.fetch(path)
        assert status == 200
        return json.loads(text)

    async def settled(self, accepted: int, active: int) -> Samples:
        """The figures once so many connections were accepted, and so many have not ended."""
        with trio.fail_after(20):
            while True:
                found = await self.samples()
                now = found["snimux_connections_active", frozenset()]
                if (total(found, "snimux_connections_total"), now) == (accepted, active):
                    return found
                await trio.sleep(0.02)

    async def connect(self, data: bytes) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.mux.port)
        await stream.send_all(data)
        return stream

    async def exchange(self, name: str, up: int, down: int) -> int:
        """Have bytes passed on, and close; how many went up, hello included."""
        stream, size = await self.opened(name, up, down)
        await stream.aclose()
        return size

    async def opened(self, name: str, up: int, down: int) -> tuple[trio.SocketStream, int]:
        """A connection on which bytes were passed on; and how many went up, hello included."""
        hello = client_hello(name, ("h2",))
        asked = down.to_bytes(8, "big")
        stream = await self.connect(hello + up.to_bytes(8, "big") + asked + bytes(up))
        got = 0
        while got < down:
            data = await stream.receive_some(2**18)
            assert data, f"ended after {got} of {down} bytes"
            got += len(data)
        return stream, len(hello) + 16 + up


def total(found: Samples, name: str) -> float:
    return sum(value for (each, _), value in found.items() if each == name)


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"snimux_{name}", frozenset(labels.items())]


async def answer(stream: trio.SocketStream) -> None:
    """As a backend: read a hello, how many bytes come and how many are wanted; do it, and end."""

    async def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await stream.receive_some(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    with contextlib.suppress(trio.BrokenResourceError, EOFError):
        async with stream:
            record = await exactly(5)
            await exactly(int.from_bytes(record[3:], "big"))
            up, down = [int.from_bytes(await exactly(8), "big") for _ in range(2)]
            await exactly(up)
            await stream.send_all(bytes(down))
            await stream.receive_some(1)


@contextlib.asynccontextmanager
async def watched(*flags: str, workers: int = 1, unix: bool = False) -> AsyncIterator[Watched]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        backend = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        down = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        with short_directory() as here:
            at = f"unix/{here}/status" if unix else "127.0.0.1:0"
            args = [
                f"--status={at}", f"--workers={workers}", f"--route=a.test,b.test={backend}",
                f"--route=second.test={down[1]},{backend}",
                f"--route=down.test={down[0]}", "--wait=off", *flags,
            ]  # fmt: skip
            async with muxes.running(here, *args) as mux:
                address = (await mux.log_line(event="status"))["address"]
                if workers > 1:
                    await workers_of(mux)
                host, _, port = address.rpartition(":")
                where = str(here / "status") if unix else (host, int(port))
                run = Watched(mux, where, down, backend)
                # a worker shows life only after it has said which relay it uses
                with trio.fail_after(60):
                    while (await run.fetch("/healthz"))[0] != 200:
                        await trio.sleep(0.01)
                yield run
        nursery.cancel_scope.cancel()


async def refused(run: Watched, data: bytes) -> None:
    """Be refused, and see the end of it."""
    async with await run.connect(data) as stream:
        while await stream.receive_some(1000):
            pass


@pytest.mark.parametrize(
    ("workers", "flags"),
    [(1, ()), (1, ("--relay=portable",)), (2, ())],
    ids=["alone", "portable", "workers"],
)
async def test_the_figures_are_what_was_sent(workers: int, flags: Sequence[str]) -> None:
    sizes = [
        *(("a.test", number * 1000, number * 30_000 + 1) for number in range(6)),
        *(("b.test", 7, 2_000_000) for _ in range(3)),
        ("second.test", 3_000_000, 1),
    ]
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    hellos: list[int] = []

    async with watched(*flags, workers=workers) as run:

        async def exchange(name: str, some_up: int, some_down: int) -> None:
            size = await run.exchange(name, some_up, some_down)
            hellos.append(size - some_up - 16)
            up[name] += size
            down[name] += some_down

        async with trio.open_nursery() as nursery:
            for each in sizes:
                nursery.start_soon(exchange, *each)
            for name in ["nobody.test"] * 3 + ["down.test"] * 2:
                hello = client_hello(name, ("h2",))
                hellos.append(len(hello))
                nursery.start_soon(refused, run, hello)
            for _ in range(2):
                nursery.start_soon(refused, run, b"GET / HTTP/1.1\r\n\r\n")
        stream, size = await run.opened("a.test", 5000, 7000)
        hellos.append(size - 5016)
        up["a.test"] += size
        down["a.test"] += 7000
        async with stream:
            found = await run.settled(18, 1)
            reasons = {dict(k[1])["reason"]: v for k, v in found.items()
                       if k[0] == "snimux_connections_refused_total" and v}  # fmt: skip
            assert reasons == {"no-route": 3, "backend-down": 2, "http": 2}
            ends = {dict(k[1])["ended"]: v for k, v in found.items()
                    if k[0] == "snimux_connections_ended_total" and v}  # fmt: skip
            assert ends == {"eof": 10, "refused": 7}
            for name, count, active in (("a.test", 7, 1), ("b.test", 3, 0), ("second.test", 1, 0)):
                key = {"route": name, "backend": run.backend}
                assert value(found, "relayed_bytes_total", direction="up", **key) == up[name]
                assert value(found, "relayed_bytes_total", direction="down", **key) == down[name]
                assert value(found, "relayed_connections_total", **key) == count
                assert value(found, "relayed_connections_active", **key) == active
            failures = {dict(k[1])["backend"]: v for k, v in found.items()
                        if k[0] == "snimux_dial_failures_total"}  # fmt: skip
            assert failures == {run.down[0]: 2, run.down[1]: 1}
            assert value(found, "alpn_offered_total", alpn="h2") == 16
            assert value(found, "hello_bytes_count") == value(found, "hello_seconds_count") == 16
            assert value(found, "hello_bytes_sum") == sum(hellos)
            assert value(found, "dial_seconds_count") == 11
            assert value(found, "first_byte_seconds_count") == 11
            assert value(found, "routes") == 4

            (row,) = (listed := await run.json("/connections"))["connections"]
            assert listed["total"] == 1
            host, port = stream.socket.getsockname()
            assert (row["client"], row["name"], row["route"]) == (f"{host}:{port}", *["a.test"] * 2)
            assert (row["up"], row["down"], row["backend"]) == (size, 7000, run.backend)

            figures = await run.json("/figures")
            assert (figures["active"], figures["routes"], figures["draining"]) == (1, 4, False)
            assert figures["counts"]["connections"] == {"tls": 18, "http": 0}
            assert {x: n for x, n in figures["counts"]["refused"].items() if n} == reasons
            numbers = map(str, range(1, workers + 1)) if workers > 1 else ()
            assert figures["workers"] == dict.fromkeys(numbers, True)
            listener = {"protocol": "tls", "address": f"127.0.0.1:{run.mux.port}"}
            assert figures["listeners"] == [listener]
            (share,) = (x for x in figures["shares"] if x["route"] == "a.test")
            assert share == {
                "route": "a.test", "backend": run.backend, "connections": 7, "active": 1,
                "up": up["a.test"], "down": down["a.test"],
            }  # fmt: skip

            rows = (await run.json("/refused"))["refused"]
            told = Counter((row["name"], row["reason"]) for row in rows)
            assert told == {("nobody.test", "no-route"): 3, ("down.test", "backend-down"): 2}
            assert all(row["client"].startswith("127.0.0.1:") for row in rows)
            assert all(a["time"] <= b["time"] for a, b in pairwise(rows))

            routes = await run.json("/routes")
            assert routes["total"] == 4
            (first,) = (row for row in routes["routes"] if row["pattern"] == "a.test")
            assert first == {
                "pattern": "a.test", "backend": [run.backend], "proxy": None, "http": None,
                "http_proxy": None, "source": "configuration", "connections": 7, "active": 1,
                "up": up["a.test"], "down": down["a.test"], "access_of": None,
                "not_answering": [], "list": None, "listen": None, "refuses": False,
            }  # fmt: skip
        await run.settled(18, 0)


class Told:
    """Two processes, of which each has found another address of a route not to answer."""

    async def ask(self, what: str) -> Answers:
        rows = [{"pattern": "a.test", "not_answering": [down]} for down in ("one", "two")]
        await trio.lowlevel.checkpoint()
        return {worker: [{"total": 1}, {what: [row]}] for worker, row in enumerate(rows, 1)}

    async def figures(self) -> Figures:
        await trio.lowlevel.checkpoint()
        return Figures(snapshot([]), {})

    def why_not_serving(self) -> str | None:
        return None

    def uptime(self) -> Uptime:
        return Uptime(0)


async def test_an_address_does_not_answer_if_one_process_has_found_so() -> None:
    page = await pages(Told())["/routes"]("*/*")
    assert isinstance(page, Page)
    (route,) = json.loads(page.body)["routes"]
    assert route["not_answering"] == ["one", "two"]


@WORKERS
async def test_the_last_reload_is_shown_with_what_came_of_it(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("drain = 3\n", "utf-8")
    async with watched(f"--config={file}", "--watch=off", workers=workers) as run:
        before = await run.json("/figures")
        assert before["reload"] is None
        assert before["uptime"] >= 0
        for text, faults in (("drain = 'x'", 1), ("drain = 4", 0)):
            file.write_text(text, "utf-8")
            run.mux.send_signal(signal.SIGHUP)
            with trio.fail_after(20):
                while (told := await run.json("/figures"))["reload"] == before["reload"]:
                    await trio.sleep(0.02)
            assert len(told["reload"]["problems"]) == faults
            assert all("drain" in each for each in told["reload"]["problems"])
            assert told["uptime"] >= before["uptime"]
            before = told


def counters(found: Samples) -> Samples:
    """Those of snimux itself that must never be less than they were."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {k: v for k, v in found.items() if k[0].startswith("snimux_") and k[0].endswith(ends)}


async def test_no_figure_goes_backwards_when_a_worker_is_killed() -> None:
    async with watched(workers=2) as run, contextlib.AsyncExitStack() as stack:
        pids = await workers_of(run.mux)
        for number in range(20):
            if number % 2:
                await run.exchange("a.test", 1000, 1000)
            else:
                stream, _ = await run.opened("b.test", 1000, 1000)
                await stack.enter_async_context(stream)
        before = await run.settled(20, 10)
        listed = await run.json("/connections")
        left = sum(row["worker"] == 2 for row in listed["connections"])
        assert len(listed["connections"]) == listed["total"] == 10
        os.kill(pids[1], signal.SIGKILL)
        with trio.fail_after(20):
            while True:
                found = await run.samples()
                for name, count in counters(before).items():
                    assert found[name] >= count, name
                before = found
                started = run.mux.lines(event="worker-started", worker=1)
                if len(started) == 2 and value(found, "worker_up", worker="1"):
                    break
                await trio.sleep(0.01)
        found = await run.settled(20, left)
        key = {"route": "a.test", "backend": run.backend}
        assert value(found, "relayed_connections_total", **key) == 10
        sent = 10 * (len(client_hello("a.test", ("h2",))) + 16 + 1000)
        assert value(found, "relayed_bytes_total", direction="up", **key) == sent
        await run.exchange("a.test", 1000, 1000)
        found = await run.settled(21, left)
        assert value(found, "relayed_connections_total", **key) == 11


async def test_a_worker_that_is_stuck_is_said_to_be_down_and_keeps_nobody_waiting() -> None:
    async with watched(workers=2) as run:
        for _ in range(10):
            await run.exchange("a.test", 10, 10)
        before = await run.settled(10, 0)
        pids = await workers_of(run.mux)
        async with held_up(pids[2]):
            found = await run.samples()
            up = [value(found, "worker_up", worker=each) for each in "12"]
            assert up == [1, 0]
            assert counters(found).items() >= counters(before).items()
            assert (await run.fetch("/healthz")) == (200, b"ok\n")
            assert (await run.json("/routes"))["total"] == 4
        with trio.fail_after(20):
            while not value(await run.samples(), "worker_up", worker="2"):
                await trio.sleep(0.01)


@WORKERS
async def test_it_is_well_until_it_drains(workers: int) -> None:
    async with watched(workers=workers) as run:
        assert await run.fetch("/healthz") == (200, b"ok\n")
        stream, _ = await run.opened("a.test", 10, 10)
        async with stream:
            await run.settled(1, 1)
            run.mux.send_signal(signal.SIGTERM)
            await run.mux.log_line(event="draining")
            assert await run.fetch("/healthz") == (503, b"draining\n")
            with trio.fail_after(20):
                while not value(found := await run.samples(), "draining"):
                    await trio.sleep(0.01)
            assert value(found, "connections_active") == 1
        assert await run.mux.exit_status() == 0
        with pytest.raises(OSError, match="connect"):
            await run.fetch("/healthz")


async def test_the_status_may_be_on_a_unix_socket() -> None:
    async with watched(unix=True) as run:
        await run.exchange("a.test", 10, 10)
        await run.settled(1, 0)
        assert isinstance(run.status, str)
        assert os.path.exists(run.status)  # noqa: ASYNC240, PTH110
        run.mux.send_signal(signal.SIGTERM)
        assert await run.mux.exit_status() == 0
        assert not os.path.exists(run.status)  # noqa: ASYNC240, PTH110


@WORKERS
async def test_a_reload_keeps_the_figures_and_shows_the_new_routes(
    workers: int, tmp_path: Path
) -> None:
    file = tmp_path / "snimux.toml"
    route = '[[route]]\nhosts = "{}.test"\nto = "127.0.0.1:1"\n'
    file.write_text(f'watch = "off"\n{route.format("one")}', "utf-8")
    async with watched(f"--config={file}", workers=workers) as run:
        stream, _ = await run.opened("a.test", 10, 10)
        async with stream:
            before = await run.settled(1, 1)
            assert value(before, "routes") == 5
            file.write_text(f'watch = "off"\n{route.format("one")}{route.format("two")}', "utf-8")
            run.mux.send_signal(signal.SIGHUP)
            with trio.fail_after(20):
                while value(found := await run.samples(), "routes") == 5:
                    await trio.sleep(0.01)
            assert value(found, "routes") == 6
            assert counters(found) == counters(before)
            assert "two.test" in [x["pattern"] for x in (await run.json("/routes"))["routes"]]
            await run.exchange("a.test", 10, 10)
            await run.settled(2, 1)


async def test_while_workers_follow_a_reload_the_newest_routes_are_shown(tmp_path: Path) -> None:
    """Also where they are fewer than those of the worker that has not followed yet."""
    file = tmp_path / "snimux.toml"

    def write(count: int) -> None:
        route = '[[route]]\nhosts = "n{}.test"\nto = "127.0.0.1:1"\n'
        routes = "".join(route.format(number) for number in range(count))
        file.write_text(f'watch = "off"\n{routes}', "utf-8")

    write(12_000)
    async with watched(f"--config={file}", workers=2) as run:
        pids = await workers_of(run.mux)

        async def counts() -> set[int]:
            figures, found = await run.json("/figures"), await run.json("/find?.test")
            return {figures["routes"], found["total"]}

        assert await counts() == {12_004}
        os.kill(pids[2], signal.SIGSTOP)
        try:
            write(8_000)
            run.mux.send_signal(signal.SIGHUP)
            with trio.fail_after(120):
                while await counts() != {8_004}:
                    await trio.sleep(0.05)
        finally:
            os.kill(pids[2], signal.SIGCONT)
        with trio.fail_after(120):
            while not run.mux.lines(event="reloaded"):
                assert await counts() == {8_004}
        # one that is started in between has done as many reloads as the others
        os.kill(pids[1], signal.SIGKILL)
        while (await workers_of(run.mux))[1] == pids[1]:
            await trio.sleep(0.05)
        write(4_000)
        run.mux.send_signal(signal.SIGHUP)
        with trio.fail_after(120):
            while len(run.mux.lines(event="reloaded")) < 2:
                assert await counts() <= {8_004, 4_004}
        assert await counts() == {4_004}


@dataclass
class Answering:
    """Processes that answer by what there is to be seen of each."""

    views: Sequence[Local]

    async def ask(self, what: str) -> Answers:
        await trio.lowlevel.checkpoint()
        return {number: [*view.tell(what)] for number, view in enumerate(self.views, 1)}

    async def figures(self) -> Figures:
        return Figures(snapshot([*Metrics().pieces()]), await self.ask("figures"))

    def why_not_serving(self) -> str | None:
        return None

    def uptime(self) -> Uptime:
        return Uptime(0)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"reloads": 1, "since": 9.0}, {"reloads": 2, "since": 5.0}),
        # a Caddy has removed sites, and not all have heard it
        ({"since": 5.0}, {"since": 6.0}),
        # one was just started, and has not heard all Caddys
        ({"unheard": 1, "since": 6.0}, {"unheard": 0, "since": 5.0}),
    ],
)
@pytest.mark.parametrize("more", ["older", "newer"])
async def test_the_newest_routes_are_shown_be_they_few_or_many(
    older: dict[str, Any], newer: dict[str, Any], more: str
) -> None:
    def view(name: str, *, reloads: int = 0, unheard: int = 0, since: float = 0) -> Local:
        routes = [
            Route(
                parse_pattern(f"{name}{number}.test"),
                targets(tls=Backend((TcpAddress("127.0.0.1", 1),))),
            )
            for number in range(3 if name == more else 1)
        ]
        silent = (TcpAddress("localhost", 2019),) * unheard
        plan = Plan(tuple(routes), (), (), silent=silent)
        current = Current(in_effect(configured(), plan=plan, reloads=reloads))
        current.since = since
        return Local(Process(current))

    views = [view("older", **older), view("newer", **newer)]
    for each in (views, views[::-1]):
        all_shown = all_pages(Answering(each), Checkup([]))
        found: list[Any] = []
        for path, query in (("/routes", "*/*"), ("/find?", ""), ("/figures", "*/*")):
            page = await all_shown[path](query)
            assert isinstance(page, Page)
            found.append(json.loads(page.body))
        routes, hits, figures = found
        event = shown(await Answering(each).figures(), await Answering(each).ask("live"))
        count = 3 if more == "newer" else 1
        assert [x["total"] for x in (routes, hits, event["routes"])] == [count] * 3
        assert figures["routes"] == count
        for rows in (routes["routes"], hits["rows"], event["routes"]["rows"]):
            assert {row["pattern"][:5] for row in rows} == {"newer"}


@WORKERS
async def test_an_upgrade_hands_the_status_over(workers: int) -> None:
    with short_directory() as here:
        at = str(here / "status")
        async with test_upgrade.running(here, f"--status=unix/{at}", workers=workers) as run:
            shown = Watched(run.mux, at, ("", ""), "")
            async with await run.connect() as stream:
                await test_upgrade.exchanged(stream)
                await shown.settled(1, 1)
                await run.upgrade()
                # it counts anew, and shows nothing of what the old one still has
                await shown.settled(0, 0)
                await test_upgrade.exchanged_once(run)
                await shown.settled(1, 0)
                await run.upgrade()
                await shown.settled(0, 0)
            assert await shown.fetch("/healthz") == (200, b"ok\n")
            os.kill(run.pid, signal.SIGTERM)
            await run.has_ended(run.pid)
            assert not os.path.exists(at)  # noqa: ASYNC240, PTH110


@WORKERS
async def test_clients_are_served_whoever_holds_the_status(workers: int) -> None:
    async with watched(workers=workers) as run, contextlib.AsyncExitStack() as stack:
        assert not isinstance(run.status, str)
        for number in range(40):
            stream = await trio.open_tcp_stream(*run.status)
            await stack.enter_async_context(stream)
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 400 * number)
        for _ in range(5):
            await run.exchange("a.test", 1000, 1000)
        await stack.aclose()
        await run.settled(5, 0)


def alerts() -> list[tuple[str, str]]:
    """Each rule's expression, and its summary."""
    text = (DOCS / "alerts.yml").read_text("utf-8")
    expressions, summaries = (re.findall(rf" {key}: (.+)", text) for key in ("expr", "summary"))
    assert len(expressions) == text.count("- alert:")
    return list(zip(expressions, summaries, strict=True))


def panels() -> list[tuple[str, str]]:
    """Each expression of the dashboard, and its legend."""
    dashboard = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    return [
        (target["expr"], target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def variables() -> list[tuple[str, str]]:
    """For each variable of the dashboard the metric that it is of, and its label."""
    dashboard = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    queries = [x["definition"] for x in dashboard["templating"]["list"] if x["type"] == "query"]
    found = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in queries]
    return [(match[1], f"{{{{{match[2]}}}}}") for match in found if match]


def words(expression: str, legend: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that an expression and what is shown of it name."""
    metrics = set(re.findall(r"\b(?:snimux|process)_\w+", expression))
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for group in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression):
        labels |= {word.strip() for word in group.split(",")}
    return metrics, labels | set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend))


@pytest.mark.skipif(sys.platform != "linux", reason="the processes' figures are Linux's")
async def test_dashboard_and_alerts_are_of_figures_that_there_are() -> None:
    async with watched(workers=2) as run:
        await run.exchange("second.test", 10, 10)
        await run.settled(1, 0)
        found = await run.samples()
    # which the scraping adds
    labels_of = {name: {"instance", "job"} for name, _ in found}
    for name, labels in found:
        labels_of[name] |= {label for label, _ in labels}
    queries = [*alerts(), *panels(), *variables()]
    assert len(queries) > 30
    for expression, legend in queries:
        metrics, named = words(expression, legend)
        assert metrics, expression
        assert metrics <= labels_of.keys(), expression
        assert named <= set().union(*(labels_of[name] for name in metrics)), expression
    told = {name for expression, _ in queries for name in words(expression, "")[0]}
    # and every figure is in one of the two, by one of its samples
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in labels_of if "snimux" in name}
    assert families - {re.sub("_(bucket|count|sum)$", "", name) for name in told} == {
        "snimux_draining"  # which is no cause for alarm
    }


@NEEDS_PROMTOOL
async def test_promtool_finds_nothing_to_say() -> None:
    async with watched(workers=2) as run:
        await run.exchange("second.test", 10, 10)
        await run.settled(1, 0)
        _, text = await run.fetch("/metrics")
    await promtool("check", "metrics", given=text)
    await promtool("check", "rules", str(DOCS / "alerts.yml"))


@NEEDS_PROMTOOL
async def test_promtool_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (expression, _) in enumerate(panels())
    ]
    file = tmp_path / "panels.yml"
    # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    await promtool("check", "rules", str(file))


async def promtool(*args: str, given: bytes = b"") -> None:
    done = await trio.run_process(
        ["promtool", *args], stdin=given, capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"SUCCESS" in done.stdout or not done.stdout + done.stderr
