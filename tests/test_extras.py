"""``extras``: the command is one that pip takes, for this Python."""

import shlex
import subprocess
import sys

import pytest

from snimux.extras import install


def test_the_command_is_for_this_python() -> None:
    command = shlex.split(install("trio"))
    assert command[0] == sys.executable
    found = subprocess.run(
        [command[0], "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True
    )
    assert found.stdout.strip() == sys.prefix


def test_a_path_with_spaces_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/a b/python")
    assert install("rich") == "'/a b/python' -m pip install rich"
    monkeypatch.setattr(sys, "executable", "")
    assert install("rich") == "python3 -m pip install rich"
