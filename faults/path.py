"""A bad path between two network namespaces: ``python -m faults.path SEED LOSS TWICE LATE DELAY``.

Two TUN devices with a loop between them that loses, doubles, overtakes and delays IP packets; in
user space, because not every kernel has netem. All chances are of 1, DELAY and the delay of what is
late are seconds, one way. Prints ``ready`` when the devices, ``near`` and ``far``, are there; then
reads commands, and answers each with a line:

``black``
    from now on nothing arrives;
``clear``
    from now on it does again;
``end``
    say what was done to how many packets, as JSON, and end.

Source: Documentation/networking/tuntap.rst of Linux.
"""

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 65536  # bytes, at the most
_LATE = 0.03  # seconds that what is overtaken takes longer


def device(name: str) -> int:
    """A new TUN device; it is there until its descriptor is closed."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


class _Path:
    def __init__(self, seed: str, chances: tuple[float, float, float], delay: float) -> None:
        self.dice = random.Random(seed)
        self.loss, self.twice, self.late = chances
        self.delay = delay
        self.near, self.far = device("near"), device("far")
        self.under_way: list[tuple[float, int, int, bytes]] = []  # due, number, where to, packet
        self.black = False
        self.packets = self.lost = self.doubled = self.delayed = 0

    def serve(self) -> None:
        """Pass packets on until told to end."""
        poll = select.poll()
        for descriptor in (self.near, self.far, sys.stdin.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            until_due = self.under_way[0][0] - time.monotonic() if self.under_way else None
            timeout = None if until_due is None else max(until_due * 1000, 0)
            for descriptor, _ in poll.poll(timeout):
                if descriptor in (self.near, self.far):
                    self.take(descriptor)
                elif not self.heed(sys.stdin.readline().strip()):
                    return
            self.deliver()

    def heed(self, command: str) -> bool:
        """Do what a command says; False if it is the last one."""
        if command in ("black", "clear"):
            self.black = command == "black"
            print(command, flush=True)
            return True
        said = ("packets", "lost", "doubled", "delayed")
        print(json.dumps({each: getattr(self, each) for each in said}), flush=True)
        return False

    def take(self, descriptor: int) -> None:
        """Take what is there at a device, and send it on its way."""
        other = self.far if descriptor == self.near else self.near
        while True:
            try:
                packet = os.read(descriptor, _PACKET)
            except OSError:  # no more for now; or the device is down
                return
            self.packets += 1
            if self.black or self.dice.random() < self.loss:
                self.lost += 1
                continue
            self.send(other, packet)
            if self.dice.random() < self.twice:
                self.doubled += 1
                self.send(other, packet)

    def send(self, where: int, packet: bytes) -> None:
        """Send a packet on its way."""
        due = time.monotonic() + self.delay
        if self.dice.random() < self.late:
            self.delayed += 1
            due += _LATE
        heapq.heappush(self.under_way, (due, self.packets + self.doubled, where, packet))

    def deliver(self) -> None:
        """Hand over what has arrived by now."""
        now = time.monotonic()
        while self.under_way and self.under_way[0][0] <= now:
            _, _, where, packet = heapq.heappop(self.under_way)
            try:
                os.write(where, packet)
            except OSError:  # the device is down
                self.lost += 1


def main(seed: str, *numbers: str) -> None:
    """Be a path until told to end."""
    loss, twice, late, delay = map(float, numbers)
    path = _Path(seed, (loss, twice, late), delay)
    print("ready", flush=True)
    path.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
