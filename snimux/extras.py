"""Say what to type to have a package that an extra of snimux brings.

snimux itself may have come from an index or from a copy of the tree, so the package is named, and
the Python that is to have it: another one's pip may be first on the PATH.
"""

import shlex
import sys


def install(*packages: str) -> str:
    """Return the command that gives packages to the Python that runs this."""
    return shlex.join([sys.executable or "python3", "-m", "pip", "install", *packages])
