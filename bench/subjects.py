"""What is measured: snimux, its peers, and no proxy at all. A table, and how each is found here.

Each has its configuration in ``bench/configs``. All log one line a connection to a file, as one
would in production, but for Traefik, which cannot do so for TCP. All have one worker or thread,
but for Traefik, whose Go runtime takes what there is, and ``snimux-workers2``.
"""

import getpass
import re
import shutil
import string
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIGS = Path(__file__).parent / "configs"
SNIMUX = (sys.executable, "-m", "snimux")
DIRECT = "direct"


class _Template(string.Template):
    delimiter = "@"  # nginx has its own use for the dollar


@dataclass(frozen=True, slots=True)
class Subject:
    """A proxy to measure."""

    name: str
    program: str
    """Looked for beside this interpreter and on PATH; empty: needs none."""
    command: tuple[str, ...]
    """With ``@{program}`` and ``@{directory}``, where the configuration is."""
    files: tuple[str, ...]
    """Its templates in ``bench/configs``."""
    route: str
    """A line of configuration for one name, with ``@{name}``, ``@{mode}`` and ``@{to}``."""
    version: tuple[str, ...] = ("--version",)
    flag: str = ""
    """A flag that `program --help` must name."""
    most_routes: int = 10**6
    """It is not measured with more."""
    why_no_more: str = ""
    tree: Path = ROOT
    """Where it is started, and where Python looks for its modules."""


def snimux(name: str, *flags: str, tree: Path = ROOT) -> Subject:
    """Return snimux with more flags, as it is in a checkout or an unpacked wheel."""
    return Subject(
        name,
        program=sys.executable,
        command=(*SNIMUX, "--config", "@{directory}/snimux.toml", *flags),
        files=("snimux.toml",),
        route='[[route]]\nhosts = "@{name}"\nto = "127.0.0.1:@{to}"\n',
        version=("-m", "snimux", "--version"),
        flag=flags[0] if flags else "",
        most_routes=0 if flags else 10**6,
        why_no_more="relays and workers share one way to look up",
        tree=tree,
    )


SUBJECTS = (
    snimux("snimux"),
    snimux("snimux-portable", "--relay", "portable"),
    snimux("snimux-workers2", "--workers", "2"),
    Subject(
        "haproxy",
        program="haproxy",
        command=("@{program}", "-W", "-db", "-f", "@{directory}/haproxy.cfg"),
        files=("haproxy.cfg", "haproxy.map"),
        route="@{name} @{mode}",
        version=("-v",),
    ),
    Subject(
        "nginx",
        program="nginx",
        command=("@{program}", "-e", "stderr", "-c", "@{directory}/nginx.conf"),
        files=("nginx.conf", "nginx.map"),
        route="@{name} 127.0.0.1:@{to};",
        version=("-v",),
    ),
    Subject(
        "sniproxy",
        program="sniproxy",
        command=("@{program}", "-f", "-c", "@{directory}/sniproxy.conf"),
        files=("sniproxy.conf",),
        route="    ^@{pattern}$$ 127.0.0.1:@{to}",
        version=("-V",),
        most_routes=1000,
        why_no_more="it tries its regular expressions one after the other",
    ),
    Subject(
        "traefik",
        program="traefik",
        command=("@{program}", "--configFile=@{directory}/traefik.yaml"),
        files=("traefik.yaml", "traefik-routes.yaml"),
        route='    "@{name}": {entryPoints: [tls], rule: "HostSNI(`@{name}`)", service: @{mode},'
        " tls: {passthrough: true}}",
        version=("version",),
        most_routes=1000,
        why_no_more="it takes minutes to load them",
    ),
    Subject(DIRECT, program="", command=(), files=(), route=""),
)
NAMES = tuple(subject.name for subject in SUBJECTS)


def by_name(name: str) -> Subject:
    """The subject of this name."""
    return SUBJECTS[NAMES.index(name)]


def find_program(name: str) -> str | None:
    """A program beside this interpreter, else on PATH, else where Debian has its daemons."""
    beside = sysconfig.get_path("scripts")
    return (
        shutil.which(name, path=beside) or shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
    )


def missing(subject: Subject) -> str | None:
    """Why a subject cannot be measured here, or None if it can."""
    if subject.program and find_program(subject.program) is None:
        return f"no program {subject.program!r}"
    if subject.flag and subject.flag not in _help_of_snimux():
        return f"snimux has no {subject.flag}"
    return None


@cache
def _help_of_snimux() -> str:
    return _output([*SNIMUX, "--help"])


def version(subject: Subject) -> str:
    """The first line that says a version."""
    if not subject.program:
        return ""
    lines = _output([find_program(subject.program) or "", *subject.version]).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d+\.\d", line)), "unknown")


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def configuration(
    subject: Subject,
    port: int,
    directory: str,
    ports: Mapping[str, int],
    routes: Sequence[tuple[str, str]],
) -> dict[str, str]:
    """The text of each of its files.

    Args:
        subject: whose.
        port: where it is to listen.
        directory: where the files will be.
        ports: of the backends, by mode.
        routes: pairs of server name and mode.
    """
    line = _Template(subject.route)
    written = "\n".join(
        line.substitute(name=name, mode=mode, to=ports[mode], pattern=re.escape(name))
        for name, mode in routes
    ).replace("$$", "$")
    values = {
        "port": port,
        "directory": directory,
        "routes": written,
        "descriptors": 20000,
        "load_module": _stream_module(),
        "user": getpass.getuser(),
        **ports,
    }
    return {
        file: _Template((CONFIGS / file).read_text("utf-8")).substitute(values)
        for file in subject.files
    }


@cache
def _stream_module() -> str:
    """The line that nginx needs where stream is a module of its own, as in Debian."""
    built = _output([find_program("nginx") or "true", "-V"])
    return "load_module modules/ngx_stream_module.so;" if "--with-stream=dynamic" in built else ""
