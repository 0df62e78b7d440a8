"""The search by atheris: guided by which lines and branches bytes reach.

One target a process, because libFuzzer ends the process when it is done:
``python -m fuzz.guided TARGET DIRECTORY [-FLAG=...]``, with libFuzzer's flags. DIRECTORY keeps what
reached something new. atheris has wheels for Linux on x86-64 only, so nothing else imports this.

Source: https://llvm.org/docs/LibFuzzer.html, https://github.com/google/atheris.
"""

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

# What reads the bytes: snimux, and what it has them read by.
with atheris.instrument_imports(include=["snimux", "tomllib", "h11"]):
    from fuzz.targets import TARGETS


def main(name: str, directory: Path, flags: list[str]) -> None:
    """Search until libFuzzer ends the process: status 0, or another where something was found."""
    target = TARGETS[name]

    def bend(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.randint(0, 2) == 0:
            return bytes(atheris.Mutate(data, max_size))
        for _ in range(random.randint(1, 3)):
            data = target.mutate(data, random)
        return data[:max_size]

    given = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, data in enumerate(target.seeds()):
        given.joinpath(f"{number:04}").write_bytes(data)
    most = max(target.max_size, *map(len, target.seeds()))
    arguments = [sys.argv[0], f"-max_len={most}", *flags, str(directory), str(given)]
    atheris.Setup(arguments, target.check, custom_mutator=bend)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
