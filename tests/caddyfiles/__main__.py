"""Let Caddys adapt the Caddyfiles again: see the package."""

import os
import re
import subprocess
import sys

from tests.caddyfiles import HERE


def main(programs: list[str]) -> None:
    """Write the JSON of each Caddyfile that a program can read; say which it cannot."""
    for program in programs:
        version = re.search(r"\d+\.\d+", _run(program, "version").stdout)
        assert version, f"{program} says no version"
        for path in sorted(HERE.glob("*.caddyfile")):
            done = _run(program, "adapt", "--pretty", "--adapter", "caddyfile", "--config", path)
            if done.returncode:
                print(f"{path.stem}: {program}: {done.stderr.splitlines()[-1]}")
            else:
                path.with_suffix(f".{version[0]}.json").write_text(done.stdout, "utf-8")


def _run(*command: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
