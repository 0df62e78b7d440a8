"""``status.prometheus``: what Prometheus' own parsers read of it."""

import os
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest
from prometheus_client import Metric, parser
from prometheus_client.openmetrics import parser as openmetrics

from snimux import __version__
from snimux.status.metrics import Metrics, Sums, snapshot
from snimux.status.prometheus import Exposed, render
from tests.status.test_metrics import ONE, end, relayed

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: bytes, content_type: str) -> list[Metric]:
    is_openmetrics = content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = (openmetrics if is_openmetrics else parser).text_string_to_metric_families
    return list(families(text.decode()))


def samples(metrics: Iterable[Metric]) -> Samples:
    return {(x.name, frozenset(x.labels.items())): x.value for m in metrics for x in m.samples}


def exposed(figures: Sums) -> Exposed:
    return Exposed(
        figures, routes=3, connections_limit=70, draining=False, workers={}, processes={}
    )


def with_traffic() -> Sums:
    figures = Metrics()
    for hello_seconds in (0.002, 0.3):
        at = relayed(figures, 'odd"\\.example'.replace('"\\', "-"), hello_seconds=hello_seconds)
        at.tally.up, at.tally.down = 1000, 9
    end(figures, at)
    return snapshot(list(figures.pieces()))


@pytest.mark.parametrize("accept", [OPENMETRICS, "application/openmetrics-text", "", "*/*",
                                    "text/plain", "application/json", "text/plain;version=abc",
                                    "application/openmetrics-text;version=abc"])  # fmt: skip
def test_both_forms_say_the_same(accept: str) -> None:
    text, content_type = render(exposed(with_traffic()), accept)
    assert content_type.startswith("application/openmetrics-text") == ("openmetrics" in accept)
    found = samples(read(text, content_type))

    def value(name: str, **labels: str) -> float:
        return found[f"snimux_{name}", frozenset(labels.items())]

    assert value("build_info", version=__version__) == 1
    assert value("connections_total", protocol="tls") == 2
    assert value("connections_active") == 1
    assert value("connections_limit") == 70
    assert value("routes") == 3
    assert value("draining") == 0
    assert value("connections_ended_total", ended="eof") == 1
    assert value("connections_refused_total", reason="no-route") == 0
    key = {"route": "odd-.example", "backend": str(ONE)}
    assert value("relayed_connections_total", **key) == 2
    assert value("relayed_connections_active", **key) == 1
    assert value("relayed_bytes_total", direction="up", **key) == 2000
    assert value("relayed_bytes_total", direction="down", **key) == 18
    assert value("alpn_offered_total", alpn="h2") == 2
    assert value("ech_offered_total") == 0
    assert value("hello_seconds_bucket", le="0.001") == 0
    assert value("hello_seconds_bucket", le="0.0025") == 1
    assert value("hello_seconds_bucket", le="0.5") == 2
    assert value("hello_seconds_bucket", le="+Inf") == 2
    assert value("hello_seconds_count") == 2
    assert value("hello_seconds_sum") == 0.302
    assert value("hello_bytes_bucket", le="1024.0") == 2
    assert value("hello_bytes_sum") == 1200


def test_units_are_said_where_there_are_some() -> None:
    metrics = read(*render(exposed(with_traffic()), OPENMETRICS))
    units = {metric.name: metric.unit for metric in metrics if metric.unit}
    assert units == {
        "snimux_hello_bytes": "bytes",
        "snimux_hello_seconds": "seconds",
        "snimux_dial_seconds": "seconds",
        "snimux_first_byte_seconds": "seconds",
        "snimux_relayed_bytes": "bytes",
    }
    assert all(metric.documentation for metric in metrics)


def test_workers_are_up_or_not() -> None:
    found = exposed(with_traffic())
    assert b"worker_up" not in render(found, "")[0]
    metrics = read(*render(replace(found, workers={1: True, 2: False}), ""))
    up = {k: v for k, v in samples(metrics).items() if k[0] == "snimux_worker_up"}
    assert [up["snimux_worker_up", frozenset({("worker", each)})] for each in "12"] == [1, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc")
def test_processes_are_told_apart_by_their_names() -> None:
    found = exposed(with_traffic())
    alone = samples(read(*render(replace(found, processes={"": os.getpid()}), OPENMETRICS)))
    assert alone["process_open_fds", frozenset()] > 0
    pids = {"1": os.getpid(), "supervisor": os.getppid(), "2": 2**22 + 1}  # the last is none
    several = samples(read(*render(replace(found, processes=pids), OPENMETRICS)))
    workers = {dict(k[1])["worker"] for k in several if k[0] == "process_cpu_seconds_total"}
    assert workers == {"1", "supervisor"}
