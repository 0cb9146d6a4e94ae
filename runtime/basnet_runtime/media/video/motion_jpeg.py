"""Motion JPEG: tell a stream of JPEG pictures from one picture."""

from __future__ import annotations

import mmap
from pathlib import Path

__all__ = ["is_motion_jpeg"]

_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP2 = 0xE2


def is_motion_jpeg(path: Path) -> bool:
    """Whether a file holds two JPEG pictures of one size, one after the other.

    What follows a photo is smaller (a preview) or listed in it (MPF: gain maps, other views).
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            first = _picture(data, 0)
            if first is None:
                return False
            scan, size = first
            # Compressed samples hold no such bytes: 0xff is followed by 0 or a restart mark there.
            following = data.find(_START + b"\xff", scan)
            if following < 0 or not data[scan:following].rstrip(b"\0").endswith(_END):
                return False
            second = _picture(data, following)
            return second is not None and second[1] == size
    except (OSError, ValueError, IndexError):  # it cannot be read, is empty, or ends in a header
        return False


def _picture(data: mmap.mmap, at: int) -> tuple[int, bytes] | None:
    """Where the first scan of the picture at `at` begins, and its height and width; None for no plain JPEG."""
    if data[at : at + 2] != _START:
        return None
    at, size = at + 2, b""
    while data[at : at + 1] == b"\xff":
        if (marker := data[at + 1]) == 0xFF:  # fill
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _APP2 and data[at + 4 : at + 8] == b"MPF\0":
            return None
        if marker in _FRAME_HEADERS:
            size = data[at + 5 : at + 9]
        if marker == _SCAN:
            return (at + 2 + length, size) if size else None
        at += 2 + max(2, length)
    return None
