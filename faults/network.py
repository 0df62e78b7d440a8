"""A network of its own: client - snimux - backend, each in a namespace, with bad paths between.

Nothing of it is to be seen outside, and it is gone when its processes are, however they end. Needs
root, unshare, nsenter and ip, and /dev/net/tun.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from faults import running

CLIENT, OUTSIDE = "10.77.1.1", "10.77.1.2"
"""The client's address, and that at which it finds snimux."""
INSIDE, BACKEND = "10.77.2.1", "10.77.2.2"
"""The address from which snimux dials, and the backend's."""


@dataclass(frozen=True, slots=True)
class Rough:
    """How bad a path is, both ways: chances of 1, and seconds of delay one way."""

    seed: str = "faults"
    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    """Of being overtaken."""
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Space:
    """One network namespace, held by a process."""

    pid: int

    def inside(self, *command: str) -> list[str]:
        """The command that runs one in it."""
        return ["nsenter", f"--target={self.pid}", "--net", "--", *command]

    def ip(self, *words: str) -> None:
        """Have ``ip`` do something in it, successfully."""
        subprocess.run(self.inside("ip", *words), check=True, capture_output=True, timeout=30)

    def sysctl(self, name: str, value: int) -> None:
        """Set one of the kernel's settings that each namespace has for itself."""
        write = f'echo {value} >"$0"'
        path = f"/proc/sys/net/ipv4/{name}"
        command = self.inside("sh", "-c", write, path)
        subprocess.run(command, check=True, capture_output=True, timeout=30)


@dataclass(frozen=True, slots=True)
class BadPath:
    """The way between two namespaces."""

    process: subprocess.Popen[bytes]

    async def tell(self, command: str) -> str:
        """Tell it something; see `faults.path`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return await running.line(self.process)

    async def counts(self) -> dict[str, int]:
        """End it; gives what was done to how many packets."""
        counts: dict[str, int] = json.loads(await self.tell("end"))
        return counts


@dataclass(frozen=True, slots=True)
class Network:
    """The three namespaces and the two paths between them."""

    client: Space
    mux: Space
    backend: Space
    outer: BadPath
    """Between client and snimux."""
    inner: BadPath
    """Between snimux and backend."""


def missing() -> str | None:
    """Say what is missing for a network of its own, or None."""
    absent = [name for name in ("unshare", "nsenter", "ip") if not shutil.which(name)]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install util-linux iproute2"
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    probe = ["unshare", "--net", "ip", "tuntap", "add", "dev", "probe", "mode", "tun"]
    done = subprocess.run(probe, capture_output=True, check=False, timeout=30)
    return f"needs namespaces and TUN: {done.stderr.decode()}" if done.returncode else None


@contextlib.asynccontextmanager
async def network(outer: Rough, inner: Rough) -> AsyncIterator[Network]:
    """A network with paths that are as bad as asked for."""
    with contextlib.ExitStack() as stack:
        client, mux, backend = [await _space(stack) for _ in range(3)]
        yield Network(
            client,
            mux,
            backend,
            await _path(stack, outer, (client, CLIENT), (mux, OUTSIDE)),
            await _path(stack, inner, (mux, INSIDE), (backend, BACKEND)),
        )


async def _space(stack: contextlib.ExitStack) -> Space:
    # It ends with this process, whose pipe it reads.
    hold = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"]
    held = stack.enter_context(running.process(*hold))
    assert await running.line(held) == "ready"
    return Space(held.pid)


async def _path(
    stack: contextlib.ExitStack, rough: Rough, near: tuple[Space, str], far: tuple[Space, str]
) -> BadPath:
    numbers = [str(each) for each in (rough.loss, rough.twice, rough.late, rough.delay)]
    command = ["unshare", "--net", *running.python("faults.path", rough.seed, *numbers)]
    made = stack.enter_context(running.process(*command))
    assert await running.line(made) == "ready"
    own = Space(made.pid)
    for name, (space, address) in (("near", near), ("far", far)):
        own.ip("link", "set", name, "name", device(address), "netns", str(space.pid))
        space.ip("address", "add", f"{address}/30", "dev", device(address))
        space.ip("link", "set", device(address), "up")
    return BadPath(made)


def device(address: str) -> str:
    """The name of the device that has an address."""
    return f"to{address.replace('.', '')}"
