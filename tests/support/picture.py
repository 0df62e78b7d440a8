"""Take pictures of the live page of a snimux with traffic: ``python -m tests.support.picture``.

The one in the README is ``python -m tests.support.picture docs/page.png``, in two minutes; a
directory instead gets one of each width, light and dark, to be looked at when the page has changed.
"""

import contextlib
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import trio

from tests.e2e.test_serve import client_hello, workers_of
from tests.e2e.test_status import Watched, answer, refused
from tests.support import muxes
from tests.support.browser import Tab, started
from tests.support.caddy import free_port, short_directory

WIDTHS = (320, 360, 768, 1280)
SECONDS = 125  # the plots show two minutes
_FIRST_SCREEN = 860

NAMES = ("secure.ciso.com", "dao.ciso.com", "traefik.ciso.com", "*.apps.ciso.com")


async def main(where: Path) -> None:
    """Have traffic, and take what is asked for."""
    random = Random(443)
    with started() as chromium, short_directory() as here:
        async with contextlib.AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            down = f"127.0.0.1:{free_port()}"
            flags = [f"--route=old.ciso.com={down}", "--wait=off", "--workers=2"]
            for name in NAMES:
                flags.append(f"--route={name}={await _backend(nursery)}")
            flags.append(f"--route=www.ciso.com={down},{await _backend(nursery)}")
            mux = await stack.enter_async_context(
                muxes.running(here, "--status=127.0.0.1:0", *flags)
            )
            host, _, port = (await mux.log_line(event="status"))["address"].rpartition(":")
            await workers_of(mux)
            run = Watched(mux, (host, int(port)), (down, down), "")
            browser = await stack.enter_async_context(chromium.attached())
            tab = await browser.tab(width=1000, height=_FIRST_SCREEN)
            await tab.open(f"http://{host}:{port}/")
            nursery.start_soon(_traffic, run, random)
            await trio.sleep(20 if where.suffix != ".png" else SECONDS)
            await _take(tab, where)
            nursery.cancel_scope.cancel()


async def _backend(nursery: trio.Nursery) -> str:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answer, [listener])
    return f"127.0.0.1:{listener.socket.getsockname()[1]}"


async def _traffic(run: Watched, random: Random) -> None:
    """As of people: some come, stay a while, and have more or less; some err."""
    async with trio.open_nursery() as nursery:
        while True:
            name = random.choices([*NAMES, "www.ciso.com"], (9, 4, 3, 2, 2))[0]
            nursery.start_soon(_visit, run, name.replace("*", "shop"), random)
            if random.random() < 0.06:
                wrong = random.choice(["old.ciso.com", "sceure.ciso.com", "ciso.com"])
                nursery.start_soon(refused, run, client_hello(wrong, ("h2", "http/1.1")))
            if random.random() < 0.04:
                nursery.start_soon(refused, run, b"GET / HTTP/1.1\r\nHost: ciso.com\r\n\r\n")
            await trio.sleep(random.expovariate(9))


async def _visit(run: Watched, name: str, random: Random) -> None:
    down = int(random.paretovariate(1.1) * 20_000)
    stream, _ = await run.opened(name, random.randrange(300, 9000), min(down, 5_000_000))
    async with stream:
        await trio.sleep(random.expovariate(1 / 4))


async def _take(tab: Tab, where: Path) -> None:
    if where.suffix == ".png":
        below = "Math.ceil(document.getElementById('refused').getBoundingClientRect().top)"
        await tab.resize(1000, await tab.run(below), dark=False)
        await trio.Path(where).write_bytes(smaller(await tab.picture(whole=False)))
        return
    for width in WIDTHS:
        for dark in (False, True):
            await tab.resize(width, _FIRST_SCREEN, dark=dark)
            name = f"{width}-{'dark' if dark else 'light'}.png"
            await trio.Path(where, name).write_bytes(await tab.picture())


def smaller(png: bytes) -> bytes:
    """The same picture, for which text and plain ground need a quarter less: without filters.

    Source: W3C PNG, 9 (filtering) and 11.2 (critical chunks); of 8 bits, not interlaced.
    """
    chunks, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += size + 12
    (_, head), *_ = chunks
    step = {2: 3, 6: 4}[head[9]]
    width = int.from_bytes(head[:4], "big") * step
    data = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    above, rows = bytearray(width), b""
    for start in range(0, len(data), width + 1):
        line = bytearray(data[start + 1 : start + 1 + width])
        for x in range(width):
            left, corner = (line[x - step], above[x - step]) if x >= step else (0, 0)
            line[x] = (line[x] + _guess(data[start], left, above[x], corner)) & 255
        rows += b"\0" + line
        above = line
    shrunk = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return png[:8] + b"".join(
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in shrunk
    )


def _guess(filtered: int, left: int, above: int, corner: int) -> int:
    match filtered:
        case 1:
            return left
        case 2:
            return above
        case 3:
            return (left + above) // 2
        case 4:
            guess = left + above - corner
            return min((left, above, corner), key=lambda each: abs(guess - each))
    return 0


def wanted(arguments: Sequence[str]) -> Path:
    """Where to take pictures to; or an exit, before two minutes have gone by for nothing."""
    where = Path(arguments[0]) if len(arguments) == 1 else None
    if where is None:
        sys.exit("usage: python -m tests.support.picture FILE.png|DIRECTORY")
    needed = where.parent if where.suffix == ".png" else where
    if not needed.is_dir():
        sys.exit(f"there is no directory {needed}: mkdir -p {needed}")
    return where


if __name__ == "__main__":
    trio.run(main, wanted(sys.argv[1:]))
