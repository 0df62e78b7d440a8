"""What a run has in common: the backends, the subjects that run, and how one measurement is made.

A subject is started once for each table of routes and stays for the whole run, so that every round
meets it warm; memory alone is measured on a fresh one.
"""

import contextlib
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import names, proc, running
from bench.running import Running
from bench.subjects import DIRECT, Subject

ROUTES = 10
"""In the table of every subject, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Busy:
    """How busy each part was, in processors: 1.0 is one processor all the time."""

    client: float
    backend: float
    proxy: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure from one round. ``direct`` has what client and backend cost themselves."""

    row: str
    figure: float
    rate: float
    """Units of work a second, by the clock; 0 where that says nothing."""
    busy: Busy


class Bed:
    """The machine with everything running.

    Resource handling: leaving ``with`` ends all processes.
    """

    def __init__(self, directory: Path) -> None:
        """Nothing runs yet; files go below the directory."""
        self.directory = directory
        self.ports: dict[str, int] = {}
        self._backends: dict[str, subprocess.Popen[bytes]] = {}
        self._running: dict[tuple[str, int], Running] = {}
        self._stack = contextlib.ExitStack()
        self._started = 0

    def __enter__(self) -> "Bed":
        """Start the backends."""
        with contextlib.ExitStack() as stack:
            self._backends = stack.enter_context(running.backends())
            self.ports = {m: int(running.first_line(p)) for m, p in self._backends.items()}
            self.ports[names.SECURE] = running.free_port()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    def keep(self, mode: str, process: subprocess.Popen[bytes]) -> None:
        """Take over another backend, to be ended with the rest."""
        self._backends[mode] = process
        self._stack.callback(running.end, process)

    def running(self, subject: Subject, routes: int = ROUTES) -> Running:
        """The subject with so many routes; started if it does not run."""
        key = (subject.name, routes)
        found = self._running.get(key)
        if found is None or (found.process and found.process.poll() is not None):
            found = self._running[key] = self._start(subject, routes)
            self._stack.callback(running.end, found.process)
        return found

    @contextlib.contextmanager
    def fresh(self, subject: Subject) -> Iterator[Running]:
        """A subject of its own, ended on leaving."""
        found = self._start(subject, ROUTES)
        try:
            yield found
        finally:
            running.end(found.process)

    def _start(self, subject: Subject, routes: int) -> Running:
        self._started += 1
        place = self.directory / f"{subject.name}-{self._started}"
        return running.start(subject, place, self.ports, names.routes(routes))

    def meter(self, target: Running, mode: str, client: tuple[int, ...] = ()) -> "Meter":
        """Begin to measure; processes besides this one may be the client's."""
        return Meter(target, self._backends[mode], client)


class Meter:
    """The processor time of client, backend and proxy from its making to its reading."""

    def __init__(
        self, target: Running, backend: subprocess.Popen[bytes], client: tuple[int, ...] = ()
    ) -> None:
        """Begin."""
        self._direct = target.subject.name == DIRECT
        self._proxy = target.pids
        self._backend = proc.family(backend.pid)
        self._client = client
        self.seconds = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin anew."""
        self._began = time.monotonic()
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        # of children, too: a load generator that was run to its end
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        client = time.process_time() + children.ru_utime + children.ru_stime
        return (
            client + proc.cpu_seconds(self._client),
            proc.cpu_seconds(self._backend),
            proc.cpu_seconds(self._proxy),
        )

    def read(self, *, settle: float = 0.0) -> tuple[Busy, float]:
        """End; returns the shares, and the seconds of what is measured."""
        self.seconds = time.monotonic() - self._began
        time.sleep(settle)
        after = self._now()
        client, backend, proxy = (b - a for a, b in zip(self._before, after, strict=True))
        busy = Busy(client / self.seconds, backend / self.seconds, proxy / self.seconds)
        return busy, client + backend if self._direct else proxy


def percentile(values: list[float], per_cent: int) -> float:
    """The value that so many per cent of the values do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[per_cent - 1]


def average(all_busy: list[Busy]) -> Busy:
    """The mean of each share."""
    return Busy(
        *(
            statistics.fmean(getattr(busy, part) for busy in all_busy)
            for part in ("client", "backend", "proxy")
        )
    )
