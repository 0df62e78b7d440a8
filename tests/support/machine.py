"""A real systemd as process 1 of namespaces of its own: units are loaded, sandboxed and run.

It has the machine's /usr and nothing else of it: its own root, network (with port 443 free) and
control groups. Only what this directory and the Python in use have to do with it is bound into it.
Needs root. All of it is gone when its first process is.
"""

import atexit
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.support.caddy import until

SYSTEMD = Path("/lib/systemd/systemd")
REPOSITORY = Path(__file__).parents[2]
GROUP = 990
"""The group called caddy."""

# Before its first process: a root of its own, with what is of the machine bound into it.
_SETUP = """\
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs {root}
cd {root}
mkdir dev etc home opt proc root run srv sys tmp usr var
chmod 1777 tmp
chmod 700 root
for name in bin lib lib64 sbin; do [ -d /usr/$name ] && ln -s usr/$name $name; done
mount --bind /usr usr
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in full null random tty urandom zero; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
touch dev/console
printf 'root:x:0:0::/root:/bin/sh\\nnobody:x:65534:65534::/:/bin/false\\n' >etc/passwd
printf 'root:x:0:\\ncaddy:x:{group}:\\nnogroup:x:65534:\\n' >etc/group
printf 'passwd: files systemd\\ngroup: files systemd\\nhosts: files\\n' >etc/nsswitch.conf
printf '127.0.0.1 localhost\\n::1 localhost\\n' >etc/hosts
cp /etc/ld.so.cache etc
mkdir -p etc/systemd/system etc/snimux opt/python opt/snimux/bin opt/snimux/site
mkdir -p opt/snimux/source/snimux ./{shared}
mount --bind {python} opt/python
mount --bind {site} opt/snimux/site
mount --bind {package} opt/snimux/source/snimux
mount --bind {shared} ./{shared}
cp {shared}/units/* etc/systemd/system
cp {shared}/bin/* opt/snimux/bin
for name in basic network nss-lookup shutdown sockets sysinit; do
    printf '[Unit]\\nDefaultDependencies=no\\n' >etc/systemd/system/$name.target
done
ip link set lo up
pivot_root . srv
umount -l /srv
export SYSTEMD_UNIT_PATH=/etc/systemd/system PATH=/usr/sbin:/usr/bin container=test
exec {systemd} --system --unit=basic.target --log-target=console --show-status=no
"""

# As an installer makes it, but for a Python that nobody but root may be able to read where it is.
_PROGRAM = """\
#!/bin/sh
LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/snimux/source:/opt/snimux/site \\
    exec /opt/python/{python} {arguments} "$@"
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A running systemd; `shared` is a directory at the same path outside and inside."""

    process: subprocess.Popen[bytes]
    pid: int
    """Of its first process, as seen from outside."""
    shared: Path

    @property
    def root(self) -> Path:
        """Its files, as seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program in it, to its end."""
        return subprocess.run(
            self.inside(*command), capture_output=True, text=True, timeout=timeout, check=False
        )

    def inside(self, *command: str) -> list[str]:
        """The command that runs a program in it."""
        spaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root", "--wd")
        return ["nsenter", f"--target={self.pid}", *spaces, *command]

    def systemctl(self, *words: str) -> None:
        """Have systemd do something, successfully."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"{words}: {done.stderr}\n{self.console}"

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={what}", unit).stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Write a file in it."""
        (self.root / path).write_text(text, "utf-8")

    def drop_in(self, unit: str, text: str, *, name: str = "local") -> None:
        """Add to a unit, as ``systemctl edit`` does."""
        directory = self.root / f"etc/systemd/system/{unit}.d"
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.conf").write_text(text, "utf-8")
        self.systemctl("daemon-reload")

    def remove_drop_ins(self, prefix: str) -> None:
        """Take back what was added to units under names that begin so."""
        for path in (self.root / "etc/systemd/system").glob(f"*.d/{prefix}*.conf"):
            path.unlink()
        self.systemctl("daemon-reload")

    @property
    def console(self) -> str:
        """What systemd wrote, the end of it."""
        return (self.root / "dev/console").read_text("utf-8", "replace")[-4000:]


def missing() -> str | None:
    """Say what is missing for a systemd here, or None if nothing is."""
    programs = ("unshare", "nsenter", "setpriv", "ip")
    absent = [name for name in programs if not shutil.which(name)]
    if not SYSTEMD.exists() or absent:
        return "needs systemd: apt-get install systemd util-linux iproute2"
    return None


def forbidden() -> str | None:
    """Say why there can be no systemd here, or None if there can."""
    if os.geteuid() != 0:
        return "needs root"
    spaces = ["--mount", "--pid", "--net", "--cgroup", "--fork"]
    probe = 'd=$(mktemp -d); mount -t tmpfs tmpfs "$d"; s=$?; umount "$d"; rmdir "$d"; exit $s'
    done = subprocess.run(["unshare", *spaces, "sh", "-c", probe], capture_output=True, check=False)
    if done.returncode:
        return f"needs namespaces: {done.stderr.decode()}"
    return None if _groups().exists() and os.access(_groups(), os.W_OK) else "needs cgroup v2"


def _groups() -> Path:
    """The control group of this process."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    where = next((line[4] for line in mounts if line[line.index("-") + 1] == "cgroup2"), "/absent")
    own = [x for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::")]
    return Path(where + own[0].removeprefix("0::")) if own else Path("/absent")


@contextlib.contextmanager
def running(units: dict[str, str]) -> Iterator[Machine]:
    """A machine with some units, by name, none of them started; ended on leaving."""
    group = _groups() / f"snimux-test-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="snimux-", dir="/run") as name:
        shared = Path(name)
        shared.chmod(0o755)
        _write(shared, units)
        (shared / "root").mkdir()
        group.mkdir()
        # Ended with this process, however that ends, and then all that is within.
        command = 'echo $$ >"$0/cgroup.procs"; exec setpriv --pdeathsig KILL "$@"'
        spaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
        unshare = ["unshare", *spaces, "--fork", "--kill-child", "sh", str(shared / "setup")]
        with (shared / "setup.log").open("wb") as log:
            process = subprocess.Popen(
                ["sh", "-c", command, str(group), *unshare],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        atexit.register(process.kill)
        try:
            yield _booted(process, shared)
        finally:
            _end(process, group)


def _write(shared: Path, units: dict[str, str]) -> None:
    """Write what the set-up copies, and the set-up."""
    base = Path(sys.base_prefix)
    python = str(Path(sys.executable).resolve().relative_to(base))
    programs = {"snimux": "-m snimux", "python": ""}
    for directory in ("units", "bin"):
        (shared / directory).mkdir()
    for name, text in units.items():
        (shared / "units" / name).write_text(text)
    for name, arguments in programs.items():
        program = shared / "bin" / name
        program.write_text(_PROGRAM.format(python=python, arguments=arguments))
        program.chmod(0o755)
    paths = {
        "root": shared / "root",
        "shared": shared,
        "python": base,
        "site": Path(sysconfig.get_path("purelib")),
        "package": REPOSITORY / "snimux",
        "systemd": SYSTEMD,
    }
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    (shared / "setup").write_text(_SETUP.format(group=GROUP, **quoted))


def _booted(process: subprocess.Popen[bytes], shared: Path) -> Machine:
    machines: list[Machine] = []

    def is_up() -> bool:
        assert process.poll() is None, (shared / "setup.log").read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if not children:
            return False
        machines[:] = [Machine(process, int(children[0]), shared)]
        return machines[0].run("systemctl", "is-system-running").stdout == "running\n"

    async def wait() -> None:
        await until(is_up, "systemd has started", seconds=30)

    trio.run(wait)
    return machines[0]


def _end(process: subprocess.Popen[bytes], group: Path) -> None:
    """End the first process, and with it all; then nothing is left in the control groups."""
    process.send_signal(signal.SIGKILL)
    process.wait()

    def is_gone() -> bool:
        for path in sorted(group.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()

    async def wait() -> None:
        await until(is_gone, "systemd has ended", seconds=30)

    trio.run(wait)
