"""Two Caddys that both want all ports, as they are before snimux comes: how many requests fail.

On a port that both have (SO_REUSEPORT) the system deals the connections out among them: Linux at
random, macOS to one of them. Both run in a nursery of their own, and are gone when all is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from demo.client import Answer, ask
from demo.doctor import Finding, examine
from demo.processes import Caddy, DemoError, free_ports, launch_caddy

_HERE = Path(__file__).parent
_ROUNDS = 8  # that all of 24 go well is one chance in 16 million


@dataclass(frozen=True, slots=True)
class Before:
    """What came of it: requests, those of them that failed, and what the doctor says."""

    port: int
    asked: int
    failed: int
    findings: Sequence[Finding]


async def before(servers: Mapping[str, tuple[str, tuple[str, ...]]], directory: Path) -> Before:
    """Start both on the same ports, and ask for each name several times.

    Args:
        servers: title and names of each, by the name of its Caddyfile.
        directory: for what they keep.

    Raises:
        DemoError: there is no Caddy, or one did not start: on this system, or of this version, two
            cannot have one port.
    """
    admin, http, https = free_ports(3)
    ports = {"ADMIN_PORT": admin, "HTTP_PORT": http, "HTTPS_PORT": https}
    listen = ("--listen", f"127.0.0.1:{https}", "--http", f"127.0.0.1:{http}")
    problem: DemoError | None = None
    async with trio.open_nursery() as nursery:
        try:
            caddys = [
                await launch_caddy(
                    nursery,
                    title,
                    _HERE / f"before/{part}.Caddyfile",
                    names,
                    directory / f"{part}-before",
                    ports,
                )
                for part, (title, names) in servers.items()
            ]
            questions = [(caddy, name) for caddy in caddys for name in caddy.names] * _ROUNDS
            answers = [await _is_answered(caddy, name) for caddy, name in questions]
            findings = await examine(*listen, "--caddy", f"localhost:{admin}")
        except DemoError as error:
            problem = error  # as it is, and not in the nursery's group
        nursery.cancel_scope.cancel()
    if problem:
        raise problem
    return Before(https, len(answers), answers.count(False), findings)


async def _is_answered(caddy: Caddy, name: str) -> bool:
    return isinstance(await ask(name, caddy.port, caddy.root, http2=True), Answer)
