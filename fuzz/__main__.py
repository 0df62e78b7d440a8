"""``python -m fuzz``: search for bytes of which a target is not true; ``make fuzz`` is that, too.

By atheris where it is installed, else by Hypothesis. What was found on the way is kept in
``.fuzz``, so that the next search begins there.
"""

import importlib.util
import itertools
import re
import subprocess
import sys
import time
from pathlib import Path

import click

from fuzz import drawn, minimise
from fuzz.target import Target
from fuzz.targets import TARGETS

_FOUND = Path(".fuzz")
_A_ROUND = 1000  # of Hypothesis' runs


@click.command("python -m fuzz", context_settings={"max_content_width": 100})
@click.argument("names", metavar="[TARGET]...", nargs=-1)
@click.option("--seconds", default=60.0, help="How long each target is searched.")
@click.option("--runs", default=-1, help="So many runs of each at most.")
@click.option("--seed", type=click.IntRange(1), help="The same seed makes the same search.")
@click.option("--hypothesis", "is_drawn", is_flag=True, help="Not by atheris.")
@click.option("--replay", type=click.Path(exists=True, path_type=Path), help="One file, again.")
@click.option("--keep", is_flag=True, help="Put finds of earlier searches into the corpus.")
def main(
    names: tuple[str, ...],
    seconds: float,
    runs: int,
    seed: int | None,
    is_drawn: bool,
    replay: Path | None,
    keep: bool,
) -> None:
    """Search for bytes of which a TARGET is not true; without one, each: see fuzz/targets.py."""
    for name in names:
        if name not in TARGETS:
            raise click.UsageError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    is_guided = importlib.util.find_spec("atheris") is not None and not is_drawn
    is_well = True
    for target in [TARGETS[name] for name in names or TARGETS]:
        if replay:
            print(f"{target.name}: {target.check(replay.read_bytes())}")
        elif keep:
            print(f"{target.name}: {_kept(target)}")
        elif is_guided:
            is_well &= _guided(target, seconds, runs, seed)
        else:
            _drawn(target, seconds, runs, seed)
    sys.exit(not is_well)


def _kept(target: Target) -> str:
    added = minimise.keep(target, _FOUND / target.name)
    steps = set().union(*(minimise.reached(target, data) for data in target.seeds()))
    lines = minimise.lines_of(target)
    missed = sorted(lines - {(file, line) for file, _, line in steps})
    places = [
        f"{Path(file).name}: {', '.join(str(line) for _, line in each)}"
        for file, each in itertools.groupby(missed, key=lambda place: place[0])
    ]
    reached = f"{len(lines) - len(missed)} of {len(lines)} lines in functions"
    return "\n    ".join(
        [
            f"{added} files added, {len(target.kept())} in the corpus; it reaches {reached}, not",
            *places,
        ]
    )


def _guided(target: Target, seconds: float, runs: int, seed: int | None) -> bool:
    """Whether atheris found nothing."""
    directory = _FOUND / target.name
    directory.mkdir(parents=True, exist_ok=True)
    flags = [f"-runs={runs}", f"-max_total_time={seconds:.0f}", f"-seed={seed or 0}",
             f"-artifact_prefix={_FOUND}/{target.name}-", "-print_final_stats=1"]  # fmt: skip
    command = [sys.executable, "-m", "fuzz.guided", target.name, str(directory), *flags]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    found = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    units = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    if done.returncode or not units:
        written = re.findall(r"Test unit written to (\S+)", done.stderr)
        again = f"; python -m fuzz {target.name} --replay {written[-1]}" if written else ""
        print(f"{done.stderr}\n{target.name}: NOT TRUE{again}")
        return False
    cov, features = found[-1]
    print(f"{target.name}: {units[-1]} runs by atheris, {cov} branches, {features} features")
    return True


def _drawn(target: Target, seconds: float, runs: int, seed: int | None) -> None:
    end = time.monotonic() + seconds
    done = 0
    number = seed or time.time_ns()
    while time.monotonic() < end and (runs < 0 or done < runs):
        at_once = _A_ROUND if runs < 0 else min(_A_ROUND, runs - done)
        drawn.search(target, at_once, number + done)
        done += at_once
    print(f"{target.name}: {done} runs by Hypothesis")


if __name__ == "__main__":
    main()
