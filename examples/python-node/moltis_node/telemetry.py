"""How this machine is doing, as far as Python and /proc know (docs/protocol.md, 5, Sample)."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from .messages import Platform, Runtime, Sample


def this_platform() -> Platform:
    """Returns what the introduction says of the machine."""
    return Platform(
        os=platform.system().lower(),
        arch=platform.machine(),
        version=_distribution(),
        kernel=platform.release(),
        hostname=platform.node(),
    )


def _distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text("utf-8").splitlines()
    except OSError:
        return platform.system()
    names = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else platform.system()


class Telemetry:
    """Makes samples; the use of the processors is measured from one to the next."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None

    def sample(self) -> Sample:
        """Returns how the machine stands now. What cannot be known here is empty or null."""
        memory = _memory()
        disk = shutil.disk_usage("/")
        return Sample(
            cpu_count=os.cpu_count() or 1,
            cpu_usage_percent=self._cpu_usage_percent(),
            load_1m=os.getloadavg()[0],
            memory_total_bytes=memory["MemTotal"],
            memory_available_bytes=memory["MemAvailable"],
            disk_total_bytes=disk.total,
            disk_available_bytes=disk.free,
            uptime_seconds=int(float(Path("/proc/uptime").read_text("ascii").split()[0])),
            gpus=(),
            runtimes=(Runtime("python", platform.python_version()),),
            providers=(),
            cut=False,
        )

    def _cpu_usage_percent(self) -> float | None:
        before, self._last = self._last, _cpu_times()
        if before is None or self._last[1] <= before[1]:
            return None
        return round(100 * (self._last[0] - before[0]) / (self._last[1] - before[1]), 1)


def _cpu_times() -> tuple[int, int]:
    """Returns busy and all ticks of all processors since the boot (proc(5), /proc/stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def _memory() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
