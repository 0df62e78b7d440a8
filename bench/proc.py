"""What processes cost: processor time and resident memory, from Linux's /proc.

/proc/PID/task/TID/schedstat counts nanoseconds, but forgets threads that have ended;
/proc/PID/stat remembers them, but counts clock ticks. So both are read.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")


def parse_schedstat(text: str) -> float:
    """Seconds on a processor, from the text of a schedstat file: its first field, in ns."""
    return int(text.split()[0]) / 1e9


def parse_stat(text: str) -> float:
    """Seconds on a processor, from the text of /proc/PID/stat: utime and stime, in ticks."""
    # The second field is the program's name, which may have blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def family(pid: int) -> tuple[int, ...]:
    """A process and all that descend from it; none if it has ended."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return ()
    return (pid, *(child.pid for child in children))


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time, user and system, that the processes have used since they began."""
    return sum(_cpu_seconds(Path(f"/proc/{pid}")) for pid in pids)


def _cpu_seconds(process: Path) -> float:
    fine = 0.0
    try:
        for thread in (process / "task").iterdir():
            fine += parse_schedstat((thread / "schedstat").read_text())
    except OSError:
        pass  # a thread has just ended, or the kernel was built without schedstat
    try:
        return max(fine, parse_stat((process / "stat").read_text()))
    except OSError:
        return fine


def resident(pids: Iterable[int]) -> int:
    """Bytes of memory that the processes have now."""
    return sum(_resident(Path(f"/proc/{pid}")) for pid in pids)


def _resident(process: Path) -> int:
    try:
        # statm would do, but since Linux 6.2 lags behind by some pages for each processor
        found = re.search(r"^Rss: +(\d+) kB$", (process / "smaps_rollup").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    except OSError:
        return 0  # has just ended
