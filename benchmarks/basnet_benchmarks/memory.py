"""How much memory a process holds, and how much one candidate needs in a process of its own.

resident_bytes()     # of this process, now
"""

from __future__ import annotations

import os
from pathlib import Path

from basnet_torch.errors import MediaError

__all__ = ["highest_bytes", "resident_bytes"]

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Resident memory of this process.

    Raises:
        MediaError: The system does not tell.
    """
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError as error:
        raise MediaError("resident memory: this system has no /proc to read it from; measure on Linux") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def highest_bytes() -> int | None:
    """The most that was resident at once since this program began; None where the system does not tell.

    `getrusage` would give the parent's memory too where that was larger when it started this program.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return next(found, None)
