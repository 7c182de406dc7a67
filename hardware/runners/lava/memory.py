"""How much memory there is, how much a group of processes takes, and how a forked process is to treat its own.

The figures are from /proc and the control group, on Linux. Processes that were forked share most of their memory, so
the sum of their resident sizes counts it many times.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterable
from pathlib import Path

UNKNOWN = -1
"""Said where the system does not tell, which is anywhere but on Linux."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
NEVER = -1
LARGEST_MMAP_THRESHOLD = 32 << 20
"""The most that glibc accepts; larger arrays are mapped from the system each time, and given back."""


def settle_forked_process() -> None:
    """Have this process leave the memory it shares with its parent alone, and keep what it frees of its own.

    Python's collector would write to every object that was there before the fork, and each page it writes to is copied.
    And glibc hands freed memory at the end of its heap back to the system: a process that computes the same arrays at
    every time step has it taken back, page by page, at every step, which cost an eighth of a sample's time.
    """
    gc.freeze()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)  # glibc stops to adapt it by itself once either is set


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
