"""Where a run was made: what figures mean little without."""

import os
import platform
import time
from pathlib import Path

import construct
import trio

from snimux import __version__

Machine = dict[str, str | int | float]


def describe() -> Machine:
    """Processors, kernel, Python, libraries, and the load that others make."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processors": os.cpu_count() or 1,
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "trio": trio.__version__,
        "construct": construct.__version__,
        "snimux": __version__,
        "load average before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
