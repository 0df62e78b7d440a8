"""An explanation -> what a person reads, and what a program reads.

Knows how it looks, and not how it came to be.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snimux.backend.proxy_auto import Remark
from snimux.explain.compare import Comparison
from snimux.explain.explain import Explanation, Result
from snimux.explain.foresee import End
from snimux.explain.refusal import Farewell
from snimux.proto import hostname
from snimux.proto.verdict import Hello
from snimux.routing.networks import UNIX
from snimux.routing.routes import Backend, Pattern
from snimux.text import plain

_WIDTH = 10  # of the words on the left
_PATTERN_WIDTH = 28
_ADDRESS_WIDTH = 28

_RESULTS = {
    Result.TAKEN: "taken",
    Result.NO_ROUTE: "no route",
    Result.BEATEN: "not needed",
    Result.NOT_OFFERED: "not for this",
    Result.OTHER_PROTOCOL: "not for this",
    Result.OTHER_LISTENER: "not for this",
}


def text(
    explained: Explanation, remarks: Sequence[Remark] = (), running: Comparison | None = None
) -> str:
    """Return text for people: each step, what the client sees; how it ends comes last.

    Args:
        explained: the ending, and the steps to it.
        remarks: what was learnt of the backend's addresses, where PROXY protocol is auto.
        running: what a running snimux does with the same.
    """
    lines = []
    shown = [("running", list(_shown_running(running)))] if running else []
    for what, rows in [*_parts(explained, remarks), *shown]:
        for number, row in enumerate(rows):
            lines.append(f"{'' if number else what:{_WIDTH}} {row}")
    return "\n".join(plain(line.rstrip()) for line in [*lines, _ending(explained)])


def _parts(
    explained: Explanation, remarks: Sequence[Remark]
) -> Iterator[tuple[str, Sequence[str]]]:
    ending = explained.ending
    yield "asked", [explained.case.title, *explained.case.notes]
    if explained.hello is not None:
        yield "hello", [_shown_hello(explained.hello)]
    if explained.source is not None:
        yield "from", [explained.source]
    if ending.entry is not None and ending.entry.name is not None:
        yield "listener", [f"{ending.entry.name}, at {ending.entry.address}"]
    yield "patterns", list(_shown_patterns(explained))
    if ending.to is not None:
        yield "dial", list(_shown_addresses(explained, ending.to, remarks))
        yield "client", ["gets its bytes relayed untouched, and sees what the backend answers"]
    if ending.farewell is not None:
        content = ending.farewell.content
        sent = f": {content.hex(' ')}" if ending.farewell.kind == "alert" else ""
        shown = [f"{program:8} {words}" for program, words in ending.farewell.shown.items()]
        yield "client", [f"gets {ending.farewell}{sent}", *shown]
    yield "hint", explained.hints


def _shown_hello(hello: Hello) -> str:
    name = "no name" if hello.name is None else f"name {hello.name}"
    unicode = hostname.for_people(hello.name or "")
    note = f" ({unicode})" if unicode != (hello.name or "") else ""
    if hello.request is not None:
        return f"plain HTTP, {name}{note}, {hello.request.method} {hello.request.target}"
    alpn = ",".join(_alpn(hello))
    return f"TLS, {name}{note}, {f'ALPN {alpn}' if alpn else 'no ALPN'}"


def _alpn(hello: Hello) -> list[str]:
    return [protocol.decode("ascii", "backslashreplace") for protocol in hello.alpn]


def _shown_patterns(explained: Explanation) -> Iterator[str]:
    missing = {x.pattern for x in explained.steps if x.result is Result.NO_ROUTE}
    for step in explained.steps:
        pattern = step.pattern
        if pattern.alpn and pattern in missing and Pattern(pattern.host) in missing:
            continue  # that the host has none is said once
        words, why = _RESULTS[step.result], step.why
        if step.result is Result.TAKEN:
            also = [f"the Caddy at {x} serves it too, and does not get it" for x in explained.also]
            why = "; ".join([f"from {explained.origin}", *also])
        yield f"{pattern!s:{_PATTERN_WIDTH}}  {words}{f': {why}' if why else ''}"


def _shown_addresses(
    explained: Explanation, to: Backend, remarks: Sequence[Remark]
) -> Iterator[str]:
    learnt = {remark.backend: remark for remark in remarks}
    has_hash = explained.balance == "ip_hash" and explained.source not in (None, UNIX)
    is_in_order = explained.balance == "first" or has_hash
    for number, address in enumerate(map(str, explained.addresses)):
        notes = [f"PROXY protocol {to.proxy}"] if to.proxy else []
        if address in learnt:
            notes[0] += f", {learnt[address].header}: {learnt[address].detail}"
        notes += ["transparent"] * to.transparent
        notes += [f"balance {explained.balance}"] if explained.balance != "first" else []
        shown = f"{('else ' if is_in_order else 'or ') if number else ''}{address}"
        yield f"{shown:{_ADDRESS_WIDTH}}  {'; '.join(notes)}"


def _shown_running(running: Comparison) -> Iterator[str]:
    same = "does the same" if not running.difference else f"DIFFERS: {running.difference}"
    yield f"the snimux at {running.where} {same}"
    if running.facts:
        yield ", ".join(
            f"{key.replace('_', ' ')} {_shown_fact(value)}"
            for key, value in running.facts.items()
            if value is not None and value != []
        )


def _shown_fact(value: object) -> str:
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _ending(explained: Explanation) -> str:
    ending = explained.ending
    match ending.end:
        case End.RELAYED:
            return "served"
        case End.REDIRECTED:
            return f"redirected to {ending.location}"
        case End.REFUSED | End.NOT_LISTENED:
            words = [ending.reason and f"{ending.reason}, {ending.reason.meaning}"]
            return "refused: " + ": ".join(filter(None, [*words, ending.detail]))


def as_json(
    explained: Explanation, remarks: Sequence[Remark] = (), running: Comparison | None = None
) -> str:
    """Return JSON for programs: the keys, ends, reasons and results stay, words may change."""
    ending, hello = explained.ending, explained.hello
    return json.dumps(
        {
            "status": status(explained),
            "asked": explained.case.title,
            "notes": list(explained.case.notes),
            "protocol": explained.case.protocol.name,
            "name": hello and hello.name,
            "alpn": _alpn(hello) if hello else [],
            "ech": bool(hello and hello.ech),
            "source": explained.source,
            "listener": ending.entry and ending.entry.name,
            "patterns": [
                {"pattern": str(x.pattern), "result": x.result, "why": x.why}
                for x in explained.steps
            ],
            "route": str(ending.route.pattern) if ending.route else None,
            "origin": explained.origin or None,
            "also": list(map(str, explained.also)),
            "balance": explained.balance if ending.to else None,
            "dial": _dial(explained, remarks),
            "end": ending.end,
            "reason": ending.reason,
            "detail": ending.detail,
            "location": ending.location or None,
            "told": _shown_farewell(explained.ending.farewell),
            "hints": list(explained.hints),
            "running": running
            and {
                "at": running.where,
                "same": not running.difference,
                "difference": running.difference,
                "facts": dict(running.facts),
            },
        },
        indent=2,
    )


def _dial(explained: Explanation, remarks: Sequence[Remark]) -> list[Mapping[str, str | None]]:
    learnt = {remark.backend: remark.header for remark in remarks}
    to = explained.ending.to
    if to is None:
        return []
    return [
        {"address": x, "proxy": to.proxy, "header": learnt.get(x, to.proxy)}
        for x in map(str, explained.addresses)
    ]


def _shown_farewell(farewell: Farewell | None) -> Mapping[str, Any] | None:
    if farewell is None:
        return None
    return {
        "kind": farewell.kind,
        "number": farewell.number,
        "name": farewell.name,
        "bytes": farewell.content.hex(),
        "shown": dict(farewell.shown),
    }


def status(explained: Explanation) -> int:
    """0 if the client is served or redirected, 1 if it is not."""
    return 0 if explained.is_served else 1
