"""When what happened, from the daemons' logs and the kernel: for the failover benchmark."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Final

STAMPED: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)")


class Timeline:
    """What daemons' logs say from now on. Times are seconds since the epoch, to the millisecond."""

    def __init__(self, *logs: Path) -> None:
        self._logs = [(log, log.stat().st_size if log.exists() else 0) for log in logs]

    def lines(self) -> list[tuple[float, str]]:
        """Everything new, in order of time."""
        found = []
        for log, start in self._logs:
            for line in log.read_bytes()[start:].decode(errors="replace").splitlines():
                match = STAMPED.match(line)
                if match:
                    found.append((datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp(), match[2]))
        return sorted(found)

    def when(self, pattern: str) -> float | None:
        """When the first line that matches was written."""
        wanted = re.compile(pattern)
        return next((moment for moment, text in self.lines() if wanted.search(text)), None)


def started_at(pid: int) -> float:
    """When a process was started, to a clock tick (proc(5), field 22 of stat)."""
    since_boot = int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def processor_s(pid: int) -> float:
    """Processor time of a process so far, to a clock tick (fields 14 and 15): whatever else the machine does."""
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Fields from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
