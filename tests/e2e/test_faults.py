"""The faults of ``python -m faults``, as little of each as shows anything: nothing is lost."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("needs Linux: namespaces, and /proc", allow_module_level=True)

from faults.catalogue import FAULTS
from faults.found import Fault, Size
from tests.conftest import need
from tests.support.caddy import short_directory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory whose path leaves room for a UNIX socket."""
    with short_directory() as directory:
        yield directory


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    found: Fault = request.param
    need(found.missing())
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name, indirect=True)
async def test_nothing_is_lost_but_what_was_killed(fault: Fault, here: Path) -> None:
    for found in await fault.run(here, Size(quick=True)):
        assert found.connections
        assert found.is_well, found


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "faults", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_command_prints_a_table() -> None:
    done = command("--quick", "--only", "idle")
    assert done.returncode == 0, done.stderr
    assert "500 connections open" in done.stdout


def test_a_fault_that_is_not_there_is_an_error() -> None:
    done = command("--only", "nothing")
    assert done.returncode == 2
    assert "no fault 'nothing'" in done.stderr
