"""A snimux and the server behind it on a network with bad paths, and clients in front.

Knows nothing of what is to go wrong.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from faults import network, running
from faults.network import BACKEND, OUTSIDE, Network, Rough
from tests.support import muxes
from tests.support.muxes import Mux

_NAME = "faults.test"
_PORT = 443


@dataclass(frozen=True, slots=True)
class Bed:
    """All of it, running."""

    network: Network
    mux: Mux
    signed: running.Authority

    def clients(self, *numbers: object) -> list[str]:
        """The command that is some clients; see `faults.client.main` for the numbers."""
        words = [OUTSIDE, str(_PORT), _NAME, str(self.signed.root), *map(str, numbers)]
        return self.network.client.inside(*running.python("faults.client", *words))


@asynccontextmanager
async def bed(here: Path, outer: Rough, inner: Rough, *flags: str) -> AsyncIterator[Bed]:
    """Have it, with some flags of snimux; gone on leaving."""
    signed = running.authority(here, _NAME)
    async with (
        network.network(outer, inner) as net,
        running.server(signed, wrapper=net.backend.inside(), host=BACKEND) as port,
        muxes.running(
            here,
            f"--route={_NAME}={BACKEND}:{port}",
            *flags,
            listen=f"{OUTSIDE}:{_PORT}",
            wrapper=net.mux.inside(),
        ) as mux,
    ):
        yield Bed(net, mux, signed)
