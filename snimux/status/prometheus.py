"""Figures -> the text that Prometheus scrapes: OpenMetrics 1.0 where it is asked for, else 0.0.4.

Names and units as Prometheus' conventions have them. Needs prometheus-client: ``snimux[status]``.
Knows nothing of where the figures come from.

Source: prometheus.io, Naming; OpenMetrics 1.0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from snimux import __version__
from snimux.status.metrics import BOUNDS, Sums

_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_TYPE = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"
_TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# name, unit, the label, help
_COUNTERS = {
    "connections": ("connections", "protocol", "Connections accepted"),
    "refused": ("connections_refused", "reason", "Connections refused, by the log's reason"),
    "ended": ("connections_ended", "ended", "Connections that ended, by the log's word for how"),
    "alpn": ("alpn_offered", "alpn", "TLS hellos that offered an ALPN protocol"),
    "ech": ("ech_offered", "", "TLS hellos that offered Encrypted Client Hello"),
    "dial_failures": ("dial_failures", "backend", "Times that a backend address did not answer"),
}
_HISTOGRAMS = {
    "hello_bytes": "Size of hellos, or of HTTP requests' heads",
    "hello_seconds": "From a connection's start until its hello was whole",
    "dial_seconds": "Until a backend was connected, others that were tried before included",
    "first_byte_seconds": "From a whole hello to the backend's first byte",
}


@dataclass(frozen=True, slots=True)
class Exposed:
    """All that is exposed; processes by what they are called, "" where there is but one."""

    figures: Sums
    routes: int
    connections_limit: int
    draining: bool
    workers: Mapping[int, bool]
    """Whether each has answered; empty where there are none."""
    processes: Mapping[str, int]
    """Their process ids."""


def render(exposed: Exposed, accept: str) -> tuple[bytes, str]:
    """The text, and its content type, by a request's ``Accept``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(exposed))
    # Prometheus names it first, where it wants it at all; and it reads either.
    if _OPENMETRICS in accept:
        text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return text, _OPENMETRICS_TYPE
    return exposition.generate_latest(registry), _TEXT_TYPE


class _Once(Collector):
    def __init__(self, exposed: Exposed) -> None:
        self.exposed = exposed

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        figures = self.exposed.figures
        yield InfoMetricFamily("snimux_build", "Version of snimux", {"version": __version__})
        yield from _counters(figures)
        for name, text in _HISTOGRAMS.items():
            yield _histogram(name, text, figures.histograms[name])
        yield from _shares(figures)
        yield from _gauges(self.exposed)
        yield from _processes(self.exposed.processes)


def _counters(figures: Sums) -> Iterator[Metric]:
    for name, (shown, label, text) in _COUNTERS.items():
        metric = CounterMetricFamily(f"snimux_{shown}", text, labels=[label] if label else [])
        for word, count in sorted(figures.counts[name].items()):
            metric.add_metric([word] if label else [], count)
        yield metric


def _histogram(name: str, text: str, row: list[float]) -> Metric:
    *counts, total = row
    bounds = [*map(floatToGoString, BOUNDS[name]), "+Inf"]
    unit = name.rpartition("_")[2]
    metric = HistogramMetricFamily(f"snimux_{name}", text, unit=unit)
    metric.add_metric([], list(zip(bounds, accumulate(counts), strict=True)), total)
    return metric


def _shares(figures: Sums) -> Iterator[Metric]:
    labels = ["route", "backend"]
    relayed = CounterMetricFamily(
        "snimux_relayed_connections", "Connections that were passed on", labels=labels
    )
    active = GaugeMetricFamily(
        "snimux_relayed_connections_active", "Connections that are passed on now", labels=labels
    )
    moved = CounterMetricFamily(
        "snimux_relayed_bytes",
        "Bytes passed on: up to backends, down to clients",
        labels=["direction", *labels],
        unit="bytes",
    )
    for key, (connections, active_now, up, down) in sorted(figures.shares.items()):
        relayed.add_metric(key, connections)
        active.add_metric(key, active_now)
        moved.add_metric(("up", *key), up)
        moved.add_metric(("down", *key), down)
    yield from (relayed, active, moved)


def _gauges(exposed: Exposed) -> Iterator[Metric]:
    active, limit = exposed.figures.active, exposed.connections_limit
    for name, text, value in (
        ("connections_active", "Connections that have not ended", active),
        ("connections_limit", "Connections that there may be at a time", limit),
        ("routes", "Patterns that have a route", exposed.routes),
        ("draining", "Whether it stops, and waits for connections to end", exposed.draining),
    ):
        yield GaugeMetricFamily(f"snimux_{name}", text, value=value)
    if exposed.workers:
        up = GaugeMetricFamily("snimux_worker_up", "Whether it has answered", labels=["worker"])
        for number, is_up in sorted(exposed.workers.items()):
            up.add_metric([str(number)], is_up)
        yield up


def _processes(processes: Mapping[str, int]) -> Iterator[Metric]:
    """Yield what Prometheus' own client says of a process, of each of several; on Linux."""
    metrics: dict[str, Metric] = {}
    for name, pid in processes.items():
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            if name:
                metric.samples = [x._replace(labels={"worker": name}) for x in metric.samples]
            first = metrics.setdefault(metric.name, metric)
            if first is not metric:
                first.samples += metric.samples
    yield from metrics.values()
