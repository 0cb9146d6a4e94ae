"""A token of this machine or container, for names in folders that several of them share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["HOST", "host_token"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def host_token(boot: Path = _BOOT) -> str:
    """Eight hex digits that two hosts do not share: process ids alone repeat, most of all in containers."""
    try:
        booted = boot.read_text().strip()
    except OSError:
        booted = ""
    return hashlib.sha256(f"{os.uname().nodename} {booted}".encode()).hexdigest()[:8]


HOST = host_token()
