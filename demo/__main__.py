"""``python -m demo [--keep]``: tell the whole story, and say by the exit status if it held.

0: every answer was right. 1: one was not, or something could not start. 130: stopped midway.
"""

import argparse
import signal
import sys


def main() -> int:
    """Parse the flags, run the demo, and return its exit status."""
    # While there is nothing to clean up, Ctrl-C just ends the process, without a traceback: also
    # during the slow imports below, which is why they are here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep all running until Ctrl-C")
    keep: bool = parser.parse_args().keep
    try:
        import trio
        from rich.console import Console

        from demo import story
    except ModuleNotFoundError as error:
        print(f"demo: no {error.name} here: `make demo` installs all it needs", file=sys.stderr)
        return 1
    terminal = Console()
    # Where nobody looks at a terminal, no row needs to be broken to fit one.
    console = terminal if terminal.is_terminal else Console(width=120)
    return trio.run(lambda: story.run(console, keep=keep))


if __name__ == "__main__":
    sys.exit(main())
