"""tlsfuzzer's scripts against one server, directly and through snimux: the verdicts are equal.

``python -m fuzz.tlsfuzzer CHECKOUT``. Each script talks to a server as clients do that do nearly
all things wrong, and says which of its conversations went otherwise than the RFCs want it. Which
do is the server's affair; that they are the same through snimux is what is shown. Where they
cannot be, ``tlsfuzzer.toml`` has the conversation and the reason.

The scripts are in no package index and in no Debian: CHECKOUT is a working tree of tlsfuzzer, and
``--python`` an interpreter that has the tlslite-ng which its requirements.txt names. The server is
``openssl s_server``.

Source: https://github.com/tlsfuzzer/tlsfuzzer, which is under the GPL; nothing of it is here.
"""

import ast
import contextlib
import fnmatch
import itertools
import os
import queue
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import trio
import trustme

from tests.support import muxes
from tests.support.caddy import until
from tests.support.muxes import Mux

_HERE = Path(__file__).parent

# Runs a script with what it chooses its conversations by seeded: the same ones each time.
_SEEDED = """\
import random, runpy, sys
del sys.argv[0]
random.sample = random.Random(int(sys.argv.pop(1))).sample
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a script says of a server."""

    status: int
    total: int
    """How many conversations it had; 0 where it did not come so far."""
    failed: Mapping[str, str]
    """The conversations that went otherwise than they should, and what came instead."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A server of its own, and a snimux before it: scripts are run one after another there."""

    server: int
    """Its port on 127.0.0.1."""
    mux: Mux

    def refusals(self) -> Counter[str]:
        """How often snimux refused so far, by reason."""
        return Counter(str(line["reason"]) for line in self.mux.lines(ended="refused"))


@dataclass(frozen=True, slots=True)
class Compared:
    """A script's verdicts on both."""

    script: str
    directly: Verdict | None
    through: Verdict | None
    """None: it took too long."""
    refusals: Counter[str]
    """How often snimux refused meanwhile, by reason."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Why conversations of a script go another way through snimux."""

    script: str
    conversation: str
    """Patterns of ``fnmatch``."""
    refused: str
    """What snimux says in its log of each."""
    why: str


@dataclass(frozen=True, slots=True)
class Scripts:
    """How scripts are run."""

    checkout: Path
    python: str
    conversations: int
    """So many of each, chosen by the seed; 0: all."""
    seed: int
    seconds: float
    """How long a script may take."""

    def names(self) -> list[str]:
        """Every script there is."""
        return sorted(path.stem for path in (self.checkout / "scripts").glob("test-*.py"))

    def verdict(self, script: str, port: int, *, patience: float = 1) -> Verdict | None:
        """Run one against 127.0.0.1; None where it takes too long, or so many times that."""
        path = self.checkout / "scripts" / f"{script}.py"
        flags = ["-h", "localhost", "-p", str(port), "-n", str(self.conversations)]
        command = [self.python, "-c", _SEEDED, str(path), str(self.seed), *flags]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "PYTHONHASHSEED": "0"},  # it orders what is chosen from
                capture_output=True,
                text=True,
                timeout=patience * self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        return read(done.returncode, done.stdout)


def read(status: int, printed: str) -> Verdict:
    """The verdict from what a script printed."""
    total = re.search(r"^TOTAL: (\d+)$", printed, re.MULTILINE)
    _, _, listed = printed.rpartition("\nFAILED:\n")
    failed: dict[str, str] = {}
    for quoted in re.findall(r"^\t(['\"b].*)$", listed, re.MULTILINE):
        name = str(ast.literal_eval(quoted))
        _, _, after = f"\n{printed}".partition(f"\n{name} ...\n")
        trace, _, _ = after.partition("\n\n")
        failed[name] = trace.rpartition("\n")[2]
    return Verdict(status, int(total[1]) if total else 0, failed)


@contextlib.contextmanager
def lane(directory: Path) -> Iterator[Lane]:
    """A server and a snimux; both are ended on leaving."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    made = trustme.CA(key_type=trustme.KeyType.RSA).issue_cert(
        "localhost", key_type=trustme.KeyType.RSA
    )
    made.cert_chain_pems[0].write_to_path(certificate)
    made.private_key_pem.write_to_path(key)
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-www", "-cert", str(certificate),
               "-key", str(key), "-cipher", "DEFAULT:@SECLEVEL=0"]  # fmt: skip
    log = directory / "s_server.log"
    with log.open("wb") as output:
        # It ends with its standard input.
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        stack.callback(server.kill)
        port = trio.run(_port, log)
        # As large a hello as may be; and no script is to run into a deadline because others run.
        mux = muxes.start(directory / "snimux.log", "--default", f"127.0.0.1:{port}",
                          "--max-hello", "65536", "--hello-timeout", "60",
                          "--log-level", "debug")  # fmt: skip
        stack.callback(mux.end)
        trio.run(lambda: mux.log_line(event="listening"))
        yield Lane(port, mux)


async def _port(log: Path) -> int:
    """Where ``openssl s_server`` says that it listens."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = re.findall(r"^ACCEPT \S+:(\d+)$", log.read_text("utf-8"), re.MULTILINE)
        return bool(found)

    await until(is_there, "openssl s_server listens", seconds=20)
    return int(found[0])


def compare(scripts: Scripts, script: str, lane: Lane) -> Compared:
    """Run one script both ways."""
    directly, before = scripts.verdict(script, lane.server), lane.refusals()
    if directly is None or not directly.total:
        return Compared(script, directly, None, Counter())
    # Some try until chance has helped them: what one way took is no measure for the other.
    through = scripts.verdict(script, lane.mux.port, patience=3)
    return Compared(script, directly, through, lane.refusals() - before)


def documented() -> list[Difference]:
    """The differences that there are reasons for."""
    text = (_HERE / "tlsfuzzer.toml").read_text("utf-8")
    return [
        Difference(script, conversation, table["refused"], table["why"])
        for table in tomllib.loads(text)["difference"]
        for script in table["scripts"]
        for conversation in table["conversations"]
    ]


def without_reason(compared: Compared, apart: Iterable[str], known: list[Difference]) -> list[str]:
    """Those of some conversations that nothing explains; each takes a refusal of its own."""
    left, unexplained = compared.refusals.copy(), []
    for name in apart:
        reasons = [
            each.refused
            for each in known
            if fnmatch.fnmatchcase(compared.script, each.script)
            and fnmatch.fnmatchcase(name, each.conversation)
        ]
        reason = next((reason for reason in reasons if left[reason]), None)
        if reason is None:
            unexplained.append(name)
        else:
            left[reason] -= 1
    return unexplained


def differing(one: Verdict, other: Verdict) -> dict[str, str]:
    """The conversations that went another way, and in which ways."""
    names = sorted({*one.failed, *other.failed})
    ways = {name: (one.failed.get(name, "well"), other.failed.get(name, "well")) for name in names}
    return {name: f"{a}; through snimux: {b}" for name, (a, b) in ways.items() if a != b}


def said(compared: Compared, known: list[Difference]) -> tuple[str, bool]:
    """Lines on a script, and whether it is well."""
    match compared:
        case Compared(_, None):
            return "takes too long", True
        case Compared(_, Verdict(total=0)):
            return "does not run so", True
        case Compared(_, _, None):
            return "takes too long through snimux alone", False
        case Compared(_, Verdict() as one, Verdict() as other):
            counts = f"{one.total} conversations, {len(one.failed)} failed"
            if one.total != other.total:
                return f"{counts}; DIFFERENT: {other.total} through snimux", False
            apart = differing(one, other)
            new = without_reason(compared, apart, known)
            if new:
                lines = "".join(f"\n    {name}: {apart[name]}" for name in new)
                return f"{counts}; DIFFERENT: {len(new)}{lines}", False
            return f"{counts}; " + (f"{len(apart)} for a reason" if apart else "equal"), True
    raise AssertionError(compared)


@click.command("python -m fuzz.tlsfuzzer", context_settings={"max_content_width": 100})
@click.argument("checkout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--python", default=sys.executable, help="What to run the scripts with.")
@click.option("--only", metavar="SCRIPT,...", help="Only these.")
@click.option("-n", "conversations", default=0, help="So many conversations of each; 0: all.")
@click.option("--seed", default=1, help="What chooses them.")
@click.option("--seconds", default=600.0, help="How long a script may take.")
@click.option("--lanes", default=2, help="How many run at a time.")
def main(
    checkout: Path,
    python: str,
    only: str | None,
    conversations: int,
    seed: int,
    seconds: float,
    lanes: int,
) -> None:
    """Run tlsfuzzer's scripts against a server, directly and through snimux."""
    scripts = Scripts(checkout.resolve(), python, conversations, seed, seconds)
    names = only.split(",") if only else scripts.names()
    known = documented()
    wrong = 0
    with contextlib.ExitStack() as stack:
        free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for _ in range(lanes):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tlsfuzzer-"))
            free.put(stack.enter_context(lane(Path(directory))))

        def run(script: str) -> Compared:
            mine = free.get()
            try:
                return compare(scripts, script, mine)
            finally:
                free.put(mine)

        with ThreadPoolExecutor(lanes) as pool:
            for number, compared in zip(itertools.count(1), pool.map(run, names)):
                line, is_well = said(compared, known)
                wrong += not is_well
                print(f"{number}/{len(names)} {compared.script}: {line}", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
