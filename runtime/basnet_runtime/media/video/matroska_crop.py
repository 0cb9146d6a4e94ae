"""Matroska crop, which FFmpeg reads and PyAV does not pass on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

__all__ = ["Crop", "matroska_crops"]

_EBML, _SEGMENT, _TRACKS, _TRACK, _VIDEO = 0x1A45DFA3, 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_OF_VIDEO = (0x83, 1)  # the type of a track
_WIDTH, _HEIGHT, _SHOWN_WIDTH, _SHOWN_HEIGHT, _SHOWN_UNIT = 0xB0, 0xBA, 0x54B0, 0x54BA, 0x54B2
_BOTTOM, _TOP, _LEFT, _RIGHT = 0x54AA, 0x54BB, 0x54CC, 0x54DD
_MOST_TRACK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """Pixels to leave out at each edge, and the shape of those that stay."""

    left: int
    top: int
    right: int
    bottom: int
    pixel_aspect: Fraction


def matroska_crops(path: Path) -> list[Crop | None]:
    """Read each video track's crop, None without one; empty if not Matroska."""
    with suppress(OSError), path.open("rb") as file:
        name, size = _header(file)
        if name != _EBML or size is None:
            return []
        file.seek(size, 1)
        name, _ = _header(file)
        while name is not None:
            name, size = _header(file)
            if name is None or size is None:
                break
            if name == _TRACKS:
                tracks = file.read(min(size, _MOST_TRACK_BYTES))
                return [
                    _crop(track)
                    for name, track in _elements(tracks)
                    if name == _TRACK and _OF_VIDEO in ((key, _number(value)) for key, value in _elements(track))
                ]
            file.seek(size, 1)
    return []


def _crop(track: bytes) -> Crop | None:
    video = next((value for key, value in _elements(track) if key == _VIDEO), b"")
    known = {key: _number(value) for key, value in _elements(video) if len(value) <= 8}
    left, top, right, bottom = (known.get(key, 0) for key in (_LEFT, _TOP, _RIGHT, _BOTTOM))
    width, height = known.get(_WIDTH, 0) - left - right, known.get(_HEIGHT, 0) - top - bottom
    if not (left or top or right or bottom) or width < 1 or height < 1:
        return None
    shown = Fraction(known.get(_SHOWN_WIDTH) or width, known.get(_SHOWN_HEIGHT) or height)
    in_pixels = known.get(_SHOWN_UNIT, 0) <= 3  # centimeters, inches and an aspect are proportions as well
    aspect = shown / Fraction(width, height) if in_pixels else Fraction(1)
    return Crop(left=left, top=top, right=right, bottom=bottom, pixel_aspect=aspect)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        name, at = _varint(data, at, keep_marker=True)
        size, at = _varint(data, at, keep_marker=False)
        if name is None or size is None:
            return
        yield name, data[at : at + size]
        at += size


def _header(file: BinaryIO) -> tuple[int | None, int | None]:
    """Name and size of the element that begins here; the size is None where the writer did not know it."""
    start = file.tell()
    head = file.read(12)
    name, at = _varint(head, 0, keep_marker=True)
    size, at = _varint(head, at, keep_marker=False)
    file.seek(start + at)
    return name, size


def _varint(data: bytes, at: int, *, keep_marker: bool) -> tuple[int | None, int]:
    """One of Matroska's numbers of variable length, and where it ends."""
    if at >= len(data) or not data[at]:
        return None, at
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big")
    if not keep_marker:
        value &= (1 << (7 * length)) - 1
        if value == (1 << (7 * length)) - 1:
            return None, at + length  # unknown
    return value, at + length


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")
