"""How much memory there is, and how much a group of processes takes; on Linux, from /proc and the control group.

Processes that were forked share most of their memory, so the sum of their resident sizes counts it many times.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

UNKNOWN = -1
"""Said where the system does not tell, which is anywhere but on Linux."""


def available_bytes() -> int:
    """Return how much memory can still be taken without swapping, within the control group's limit; or `UNKNOWN`."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return UNKNOWN
    try:  # version 2 of control groups, as containers see their own
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return available


def private_bytes(process_ids: Iterable[int]) -> int:
    """Return what would be free again without these processes: the memory no other process shares."""
    return sum(_rollup(pid, "Private_Clean") + _rollup(pid, "Private_Dirty") for pid in process_ids)


def proportional_bytes(process_ids: Iterable[int]) -> int:
    """Return the memory of these processes, each shared page divided among those that share it (PSS)."""
    return sum(_rollup(pid, "Pss") for pid in process_ids)


def processor_count() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rollup(pid: int, field: str) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended, or this is not Linux
        return 0
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0
