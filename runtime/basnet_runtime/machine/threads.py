"""Threads this process may use: its CPU affinity and its container's quota."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

__all__ = ["allowed_threads", "cgroup_quota", "without_threads"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC_CGROUP = Path("/proc/self/cgroup")


def allowed_threads() -> int:
    """Return the CPUs this process may use, at least 1.

    The smaller of its affinity and its cgroup quota, rounded up.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = cgroup_quota()
    return max(1, available if quota is None else min(available, math.ceil(quota)))


def without_threads(description: str) -> str:
    """What runs, without the number of threads, which decides no result.

    >>> without_threads("OpenVINO 2026.4.1, CPU, int8, 2 threads")
    'OpenVINO 2026.4.1, CPU, int8'
    """
    return re.sub(r", \d+ threads?\b", "", description)


def cgroup_quota(root: Path = _CGROUP_ROOT, proc: Path = _PROC_CGROUP) -> float | None:
    """The CPU quota in CPUs, or None when there is none.

    Version 2 and version 1 are read; every group from this process's own up to the root counts, the smallest holds.
    """
    quotas = [quota for group in _groups(root, proc) if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _groups(root: Path, proc: Path) -> list[Path]:
    """Folders that may hold a quota for this process, in both hierarchies."""
    folders = [root, root / "cpu", root / "cpu,cpuacct"]
    for line in _text(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = base / path.lstrip("/")
        folders += [group, *(p for p in group.parents if p.is_relative_to(base))]
    return list(dict.fromkeys(folders))


def _quota_of(group: Path) -> float | None:
    limit = _text(group / "cpu.max").split()  # version 2: "200000 100000" or "max 100000"
    if len(limit) != 2:
        limit = [_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()]
    try:
        quota, period = (int(value) for value in limit)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
