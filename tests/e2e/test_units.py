"""``systemd/`` and ``launchd/``: good by systemd's own tools, and run by a real systemd.

That one has namespaces of its own (see ``machine``), and the units are as they are shipped.
"""

import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from snimux.config.load import load
from tests.conftest import need
from tests.support import caddy, machine
from tests.support.caddy import Caddy, until
from tests.support.machine import REPOSITORY, Machine

UNITS = {path.name: path.read_text("utf-8") for path in (REPOSITORY / "systemd").iterdir()}
PROGRAM = "/opt/snimux/bin/snimux"

NEEDS_ANALYZE = pytest.mark.needs(
    lambda: sys.platform == "linux" and not shutil.which("systemd-analyze"),
    "needs systemd-analyze: apt-get install systemd",
)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


def analyze(*words: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@NEEDS_ANALYZE
@ON_LINUX
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name, text in UNITS.items():
        assert (PROGRAM in text) is (name == "snimux.service")
        # verify looks whether the program is there
        (tmp_path / name).write_text(text.replace(PROGRAM, sys.executable))
    assert analyze("verify", "--man=no", *(str(tmp_path / name) for name in UNITS)) == ""


@NEEDS_ANALYZE
@ON_LINUX
def test_the_sandbox_is_as_tight_as_it_can_be() -> None:
    service = REPOSITORY / "systemd/snimux.service"
    # in tenths, of at most 100
    said = analyze("security", "--offline=true", "--no-pager", "--threshold=15", str(service))
    assert re.search(r"exposure level for snimux.service: 1\.[0-5] OK", said)


def test_the_sandbox_lets_it_ask_where_a_connection_ends() -> None:
    (families,) = re.findall(r"(?m)^RestrictAddressFamilies=(.*)$", UNITS["snimux.service"])
    assert families.split() == ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"]


def test_launchd_can_read_its_property_list() -> None:
    plist = plistlib.loads((REPOSITORY / "launchd/snimux.plist").read_bytes())
    assert plist["ProgramArguments"][0] == PROGRAM
    assert plist["UserName"] != "root"
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    drain = load({"default": "127.0.0.1:1"}).limits.drain
    assert drain < plist["ExitTimeOut"] < 2 * drain


# --- by a real systemd

SITES = """\
secure.ciso.com {{
	bind unix/{shared}/https|0660
	tls internal
	respond "secure by {{http.request.proto}}"
}}
"""

# Asks again and again until there is a file; says how often it was answered, and what went wrong.
CLIENT = """
import os, socket, ssl, sys
ca_file, end = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
answered = 0
while not os.path.exists(end):
    with socket.create_connection(("127.0.0.1", 443), timeout=30) as plain:
        with context.wrap_socket(plain, server_hostname="secure.ciso.com") as tls:
            tls.sendall(b"GET / HTTP/1.0\\r\\nHost: secure.ciso.com\\r\\n\\r\\n")
            answer = b""
            while data := tls.recv(65536):
                answer += data
    assert answer.endswith(b"secure by HTTP/1.0"), answer
    answered += 1
    if answered == 1:
        print("begun", flush=True)
print(answered)
"""

# What differs on this machine, as an administrator would write it; and a log that can be read.
DROP_IN = """\
[Service]
SupplementaryGroups=caddy
StandardError=append:{shared}/log
"""


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """A systemd that has the units, and nothing started."""
    if sys.platform != "linux":
        pytest.skip("systemd is Linux's")
    need(machine.missing())
    # Even where all is installed: not every CI may have it.
    forbidden = machine.forbidden()
    if forbidden:
        pytest.skip(f"{forbidden}: to start a systemd in namespaces of its own")
    with machine.running(UNITS) as running:
        running.drop_in("snimux.service", DROP_IN.format(shared=running.shared))
        yield running


@pytest.fixture(scope="module")
def site(booted: Machine) -> Iterator[Caddy]:
    """A Caddy outside, whose sockets are open to the group caddy."""
    need(caddy.missing())
    started = caddy.start(booted.shared, SITES.format(shared=booted.shared))
    try:
        https = booted.shared / "https"
        trio.run(lambda: caddy.answering(started, ["secure.ciso.com"], unix=https))
        for path in (started.admin, https):
            shutil.chown(path, group=machine.GROUP)
            path.chmod(0o660)
        yield started
    finally:
        started.stop()


@pytest.fixture
def units(booted: Machine, site: Caddy) -> Iterator[Machine]:
    """The units enabled as the README has it; stopped in the end."""
    booted.write("etc/snimux/snimux.toml", f'[[caddy]]\nadmin = "unix/{site.admin}"\n')
    booted.systemctl("start", "snimux.socket", "snimux-http.socket", "snimux.service")
    yield booted
    booted.systemctl("stop", "snimux.socket", "snimux-http.socket", "snimux.service")
    assert booted.show("snimux.service", "Result") == "success", log(booted)
    booted.remove_drop_ins("test-")


def log(booted: Machine) -> str:
    return (booted.shared / "log").read_text("utf-8")


def page(booted: Machine, site: Caddy, host: str = "127.0.0.1") -> str:
    """What secure.ciso.com answers."""
    to = ["--connect-to", f"secure.ciso.com:443:{host}:443", "https://secure.ciso.com/"]
    ask = ["curl", "--disable", "-sS", "--max-time", "30", "--cacert", str(site.root)]
    done = booted.run(*ask, *to)
    assert done.returncode == 0, done.stderr + log(booted)
    return done.stdout


def status_of(booted: Machine, pid: str) -> dict[str, list[str]]:
    """proc_pid_status(5) of a process within."""
    lines = (booted.root / f"proc/{pid}/status").read_text("utf-8").splitlines()
    return {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}


def test_it_serves_without_any_privilege(units: Machine, site: Caddy) -> None:
    assert page(units, site) == page(units, site, "[::1]") == "secure by HTTP/2.0"
    for client in ("client=127.0.0.1:", "client=[::1]:"):
        trio.run(until, lambda client=client: client in log(units), f"{client} is logged")
    redirect = units.run("curl", "-sS", "-H", "Host: secure.ciso.com", "http://127.0.0.1/",
                         "-o/dev/null", "-w%{http_code} %{redirect_url}")  # fmt: skip
    assert redirect.stdout == "308 https://secure.ciso.com/"
    pid = units.show("snimux.service", "MainPID")
    status = status_of(units, pid)
    assert "0" not in status["Uid"]
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind][0], 16) == 0
    assert units.show("snimux.service", "WatchdogUSec") == "30s"
    # it sees systemd's sockets, by their names; and said that it serves them
    assert "address=:443 protocol=tls" in log(units)
    assert "address=:80 protocol=http" in log(units)
    assert re.fullmatch(r"\d connections?, 1 route", units.show("snimux.service", "StatusText"))


def test_a_restart_loses_no_connection(units: Machine, site: Caddy) -> None:
    script, end = units.shared / "client.py", units.shared / "end"
    script.write_text(CLIENT)
    command = units.inside("/opt/snimux/bin/python", str(script), str(site.root), str(end))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        pids = {units.show("snimux.service", "MainPID")}
        for _ in range(3):
            units.systemctl("restart", "snimux.service")
            pids.add(units.show("snimux.service", "MainPID"))
        end.touch()
        answered, errors = client.communicate(timeout=60)
    assert errors == b""
    assert len(pids) == 4
    assert int(answered) > 3


# Asks twice on one connection; in between it waits for a file.
PATIENT = """
import os, socket, ssl, sys, time
ca_file, end = sys.argv[1:]
context = ssl.create_default_context(cafile=ca_file)
with socket.create_connection(("127.0.0.1", 443), timeout=60) as plain:
    with context.wrap_socket(plain, server_hostname="secure.ciso.com") as tls:
        for version in ("1.1", "1.0"):
            tls.sendall(b"GET / HTTP/%s\\r\\nHost: secure.ciso.com\\r\\n\\r\\n" % version.encode())
            answer = b""
            while not answer.endswith(b"secure by HTTP/" + version.encode()):
                data = tls.recv(65536)
                assert data, answer
                answer += data
            print(version, flush=True)
            while not os.path.exists(end):
                time.sleep(0.01)
"""


def processes_of(booted: Machine) -> int:
    """How many processes the service has."""
    group = "/sys/fs/cgroup/system.slice/snimux.service/cgroup.procs"
    return len(booted.run("cat", group).stdout.split())


def upgraded(booted: Machine, *whom: str) -> str:
    """Upgrade; the process id of the main process then."""
    before = booted.show("snimux.service", "MainPID")
    booted.systemctl("kill", "--signal=USR2", *whom, "snimux.service")
    main = partial(booted.show, "snimux.service", "MainPID")
    trio.run(partial(until, lambda: main() != before, "there is another", seconds=30))
    return main()


@pytest.mark.parametrize(
    ("workers", "whom"),
    [(1, ["--kill-whom=main"]), (2, [])],
    ids=["main", "workers-and-all"],
)
def test_an_upgrade_is_the_same_service(
    workers: int, whom: list[str], units: Machine, site: Caddy
) -> None:
    config = f'workers = {workers}\n[[caddy]]\nadmin = "unix/{site.admin}"\n'
    units.write("etc/snimux/snimux.toml", config)
    units.systemctl("restart", "snimux.service")
    assert page(units, site) == "secure by HTTP/2.0"
    first = units.show("snimux.service", "MainPID")
    scripts = {"client": CLIENT, "patient": PATIENT}
    clients = []
    for name, script in scripts.items():
        (units.shared / f"{name}.py").write_text(script)
        (units.shared / f"{name}.end").unlink(missing_ok=True)
        command = units.inside("/opt/snimux/bin/python", f"{units.shared}/{name}.py",
                               str(site.root), f"{units.shared}/{name}.end")  # fmt: skip
        pipe = subprocess.PIPE
        clients.append(subprocess.Popen(command, stdout=pipe, stderr=pipe))
    one = 1 if workers == 1 else 1 + workers
    try:
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() in (b"begun\n", b"1.1\n")
        pids = [first, upgraded(units, *whom)]
        another = '[[route]]\nhosts = "dao.ciso.com"\nto = "127.0.0.1:1"\n'
        units.write("etc/snimux/snimux.toml", config + another)
        pids.append(upgraded(units, *whom))
        assert len(set(pids)) == 3
        (units.shared / "client.end").touch()
        _, errors = clients[0].communicate(timeout=60)
        assert errors == b""
        # the first one has a connection still
        assert processes_of(units) > one
        assert (units.root / f"proc/{first}").exists()
        (units.shared / "patient.end").touch()
        answers, errors = clients[1].communicate(timeout=60)
        assert (answers, errors) == (b"1.0\n", b"")
    finally:
        for name, client in zip(scripts, clients, strict=True):
            (units.shared / f"{name}.end").touch()
            client.wait(timeout=60)
    trio.run(until, lambda: processes_of(units) == one, "the first one has ended")
    # it is the new one that is heard: the old one knew no second route
    of_all = ", 2 workers" if workers == 2 else ""
    says = re.compile(rf"\d connections?, 2 routes{of_all}")
    status = partial(units.show, "snimux.service", "StatusText")
    trio.run(until, lambda: says.fullmatch(status()), "it says so")
    assert units.show("snimux.service", "NRestarts") == "0"
    assert units.show("snimux.service", "ActiveState") == "active"
    assert units.show("snimux.service", "MainPID") == pids[-1]
    status_now = status_of(units, pids[-1])
    assert "0" not in status_now["Uid"]
    assert (status_now["NoNewPrivs"], status_now["Seccomp"]) == (["1"], ["2"])
    assert page(units, site) == page(units, site, "[::1]") == "secure by HTTP/2.0"


def test_with_the_new_one_systemd_ends_the_old_one_and_begins_anew(
    units: Machine, site: Caddy
) -> None:
    first = units.show("snimux.service", "MainPID")
    script, end = units.shared / "patient.py", units.shared / "patient.end"
    script.write_text(PATIENT)
    end.unlink(missing_ok=True)
    command = units.inside("/opt/snimux/bin/python", str(script), str(site.root), str(end))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"1.1\n"
        upgraded(units)
        units.systemctl("kill", "--kill-whom=main", "--signal=KILL", "snimux.service")
        # a connection waits until there is another
        assert page(units, site) == "secure by HTTP/2.0"
        assert not (units.root / f"proc/{first}").exists()
        assert processes_of(units) == 1
        assert units.show("snimux.service", "NRestarts") == "1"
        end.touch()
        client.wait(timeout=60)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_is_in_place_and_says_whether_it_was_good(
    units: Machine, site: Caddy, workers: int
) -> None:
    config = f'watch = "off"\nworkers = {workers}\n[[caddy]]\nadmin = "unix/{site.admin}"\n'
    units.write("etc/snimux/snimux.toml", config)
    units.systemctl("restart", "snimux.service")
    pid = units.show("snimux.service", "MainPID")

    def reload(line: str, status: str) -> None:
        units.write("etc/snimux/snimux.toml", line + config)
        units.systemctl("reload", "snimux.service")
        trio.run(
            until,
            lambda: (
                re.search(status, units.show("snimux.service", "StatusText"))
                and units.show("snimux.service", "SubState") == "running"
            ),
            f"it says {status}",
        )

    reload("drian = 3\n", "; not reloaded: .*: unknown key 'drian'; did you mean drain[?]$")
    before = log(units).count("event=reloaded")
    reload("drain = 3\n", "routes?(, 2 workers)?$")
    assert log(units).count("event=reloaded") == before + 1
    # what systemd holds, is listened on as before
    assert " opened=0 closed=0 settings=drain " in log(units).splitlines()[-1]
    assert page(units, site) == "secure by HTTP/2.0"
    assert units.show("snimux.service", "MainPID") == pid


def test_workers_are_one_service(units: Machine, site: Caddy) -> None:
    config = f'workers = 2\n[[caddy]]\nadmin = "unix/{site.admin}"\n'
    units.write("etc/snimux/snimux.toml", config)
    units.systemctl("restart", "snimux.service")
    assert page(units, site) == "secure by HTTP/2.0"
    status = units.show("snimux.service", "StatusText")
    assert re.fullmatch(r"\d connections?, [01] routes?, 2 workers", status)
    assert processes_of(units) == 3


def test_one_that_is_stuck_is_replaced(units: Machine, site: Caddy) -> None:
    units.drop_in("snimux.service", "[Service]\nWatchdogSec=1\n", name="test-watchdog")
    units.systemctl("restart", "snimux.service")
    assert page(units, site) == "secure by HTTP/2.0"
    units.systemctl("kill", "--kill-whom=main", "--signal=STOP", "snimux.service")
    # a connection waits until there is another
    assert page(units, site) == "secure by HTTP/2.0"
    assert units.show("snimux.service", "NRestarts") == "1"


def test_a_worker_that_is_stuck_is_replaced_and_the_service_goes_on(
    units: Machine, site: Caddy
) -> None:
    units.drop_in("snimux.service", "[Service]\nWatchdogSec=4\n", name="test-watchdog")
    units.write("etc/snimux/snimux.toml", f'workers = 2\n[[caddy]]\nadmin = "unix/{site.admin}"\n')
    units.systemctl("restart", "snimux.service")
    assert page(units, site) == "secure by HTTP/2.0"
    main, before = units.show("snimux.service", "MainPID"), log(units).count("event=worker-died")
    group = "/sys/fs/cgroup/system.slice/snimux.service/cgroup.procs"
    worker = next(x for x in units.run("cat", group).stdout.split() if x != main)
    assert units.run("kill", "-STOP", worker).returncode == 0
    died = lambda: log(units).count("event=worker-died") > before  # noqa: E731
    trio.run(partial(until, died, "it is replaced", seconds=90))
    assert f"pid={worker} signal=SIGKILL" in log(units)
    assert page(units, site) == "secure by HTTP/2.0"
    assert units.show("snimux.service", "MainPID") == main
    assert units.show("snimux.service", "NRestarts") == "0"


def test_what_cannot_start_does_not_close_the_port(units: Machine, site: Caddy) -> None:
    good = f'[[caddy]]\nadmin = "unix/{site.admin}"\n'
    units.write("etc/snimux/snimux.toml", "drian = 3\n")
    failed = units.run("systemctl", "restart", "snimux.service")
    assert failed.returncode == 1
    assert "unknown key 'drian'" in log(units)
    for _ in range(6):  # as often as systemd's own limit, and once more
        units.run("systemctl", "restart", "snimux.service")
    units.write("etc/snimux/snimux.toml", good)
    assert page(units, site) == "secure by HTTP/2.0"
    assert units.show("snimux.socket", "Result") == "success"
