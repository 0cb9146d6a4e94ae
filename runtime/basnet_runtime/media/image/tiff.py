"""TIFF directories: pages, thumbnails, meaning of bands, compression.

    page = chosen_page(file, asked=None)        # the first full page, or the asked one
    check_page(page)                            # refuses what would come out wrong

libtiff continues where compressed data are damaged, so deflated and JPEG blocks are checked beforehand.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from basnet_runtime.media.formats import no_page
from basnet_torch.errors import MediaError
from basnet_torch.picture_bytes import TIFF_COMPRESSIONS

__all__ = ["TiffPage", "check_blocks", "check_page", "chosen_page", "compression_name", "is_tiff"]

_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = {1: "B", 7: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SUBFILE, _OLD_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 255, 258, 259, 262, 266
_SAMPLES, _OFFSETS, _COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 277, 273, 279, 324, 325
_SUB_DIRECTORIES, _INK_SET, _EXTRA, _FORMAT, _JPEG_TABLES = 330, 332, 338, 339, 347
_KNOWN = (
    *(_SUBFILE, _OLD_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _OFFSETS, _COUNTS, _TILE_OFFSETS),
    *(_TILE_COUNTS, _SUB_DIRECTORIES, _INK_SET, _EXTRA, _FORMAT, _FILL_ORDER, _JPEG_TABLES),
)
_NO_FULL_PAGE = 1 | 4 | 8  # reduced, a mask, a depth map
_MOST_ENTRIES = 4096
_CHUNK = 1 << 20
_READ_BITS = (1, 2, 4, 8, 16, 32)
_DEFLATE = (8, 32946)
_JPEG = 7
# Bands of color by photometric interpretation; what is not here cannot be shown as it is meant.
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 4, 6: 3, 8: 3, 32845: 3}
_OTHER_MEANINGS = {
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "raw data of a camera's sensor",
    32844: "LogL",
    34892: "raw data of a camera's sensor",
    51177: "a depth map",
    52527: "a semantic mask",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TiffPage:
    """One directory of a TIFF.

    Attributes:
        number: Place in the file, from 1.
        inner: Which of that page's own subdirectories it is, from 0; -1 for the page itself.
        tags: Number of a tag to its values, as far as they matter here.
    """

    number: int
    inner: int = -1
    tags: dict[int, tuple[int, ...]] = field(repr=False)

    def value(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def is_full(self) -> bool:
        """Whether it is no thumbnail, mask or depth map of another page."""
        return not self.value(_SUBFILE) & _NO_FULL_PAGE and self.value(_OLD_SUBFILE) != 2

    @property
    def extra(self) -> tuple[int, ...] | None:
        """Meaning of the bands after the color: 1 and 2 are alpha; None without any."""
        stored = self.value(_SAMPLES, 1) - _COLORS.get(self.value(_PHOTOMETRIC, 1), 3)
        return (*self.tags.get(_EXTRA, ()), *([0] * stored))[:stored] if stored > 0 else None

    @property
    def options(self) -> str:
        """How libvips is asked for it."""
        inner = f",subifd={self.inner}" if self.inner >= 0 else ""
        return f"page={self.number - 1}{inner}"


def is_tiff(head: bytes) -> bool:
    """Whether a file begins like a TIFF or BigTIFF."""
    return head[:4] in _HEADS


def compression_name(page: TiffPage) -> str:
    """The usual name."""
    number = page.value(_COMPRESSION, 1)
    return TIFF_COMPRESSIONS.get(number, f"number {number}")


def chosen_page(file: BinaryIO, asked: int | None) -> TiffPage | None:
    """Choose a page by number, from 1, else the first that is no thumbnail.

    None where the directories cannot be followed, which libvips then explains.

    Raises:
        MediaError: There is no such page.
    """
    first, count = None, 0
    try:
        for page, inner in _pages(file):
            first, count = first or page, page.number
            if asked == page.number:
                return page
            if asked is None and (full := next((each for each in (page, *inner) if each.is_full), None)):
                return full
    except (struct.error, OSError, ValueError):
        return None
    if asked is not None:
        raise no_page(count, asked)
    return first


def check_page(page: TiffPage) -> None:
    """Refuse samples that would come out as something else.

    Raises:
        MediaError: What they are.
    """
    bits, meaning = page.value(_BITS, 1), page.value(_PHOTOMETRIC, 1)
    if meaning == 5 and page.value(_INK_SET, 1) == 2:
        raise MediaError(
            f"its {page.value(_SAMPLES, 1)} inks are not cyan, magenta, yellow and black; convert it to RGB"
        )
    if meaning not in _COLORS:
        what = _OTHER_MEANINGS.get(meaning, f"photometric interpretation {meaning}")
        raise MediaError(f"its pixels are {what}, which is not read; convert it to RGB")
    if page.value(_FORMAT, 1) in (5, 6):
        raise MediaError("its samples are complex numbers; save it with 8 or 16 bits")
    if bits not in _READ_BITS:
        raise MediaError(f"its samples have {bits} bits; save it with 8 or 16 bits")


def check_blocks(file: BinaryIO, page: TiffPage, check_jpeg: Callable[[bytes], None]) -> None:
    """Refuse damaged deflate and JPEG blocks, which libtiff decodes silently.

    Args:
        file: The opened file.
        page: One of its pages.
        check_jpeg: Raises MediaError where it cannot decode a whole JPEG.

    Raises:
        MediaError: A block is damaged.
    """
    check = {_JPEG: check_jpeg, **dict.fromkeys(_DEFLATE, _inflate)}.get(page.value(_COMPRESSION, 1))
    if check is None or page.value(_FILL_ORDER, 1) != 1:
        return
    size = os.fstat(file.fileno()).st_size
    tables = bytes(page.tags.get(_JPEG_TABLES, ()))
    tiled = _TILE_OFFSETS in page.tags
    offsets = page.tags.get(_TILE_OFFSETS if tiled else _OFFSETS, ())
    counts = page.tags.get(_TILE_COUNTS if tiled else _COUNTS, ())
    for index, (offset, count) in enumerate(zip(offsets, counts, strict=False)):
        block = os.pread(file.fileno(), min(count, size), offset)
        if check is check_jpeg and tables:
            block = tables[:-2] + block[2:]  # without the end of the one and the beginning of the other
        try:
            check(block)
        except (zlib.error, MediaError) as error:
            what = "tile" if tiled else "strip"
            raise MediaError(f"is damaged: {what} {index + 1} of {len(offsets)} cannot be decoded") from error


def _inflate(data: bytes) -> None:
    """Decompress in pieces, for the checksum alone."""
    inflator = zlib.decompressobj()
    while data and not inflator.eof:
        inflator.decompress(data, _CHUNK)
        data = inflator.unconsumed_tail


def _pages(file: BinaryIO) -> Iterator[tuple[TiffPage, Iterator[TiffPage]]]:
    """Every directory of the chain with those inside it, as they are asked for."""
    reader = _Reader(file)
    seen: set[int] = set()
    at, number = reader.first, 0
    while at and at not in seen:
        seen.add(at)
        number += 1
        tags, at = reader.directory(at)
        inner = (
            TiffPage(number=number, inner=index, tags=reader.directory(start)[0])
            for index, start in enumerate(tags.get(_SUB_DIRECTORIES, ()))
        )
        yield TiffPage(number=number, tags=tags), inner


class _Reader:
    """Reads directories of both forms of TIFF; raises struct.error where a file ends too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        head = self._at(0, min(16, self._size))
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = head[2:4] in (b"+\0", b"\0+")
        self._offset = "Q" if self._big else "I"
        (self.first,) = struct.unpack_from(self._order + self._offset, head, 8 if self._big else 4)

    def _at(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise ValueError("beyond the end of the file")
        return os.pread(self._file.fileno(), size, offset)

    def directory(self, at: int) -> tuple[dict[int, tuple[int, ...]], int]:
        """The tags that matter, and where the next directory is; 0 after the last."""
        size, width = (8, 20) if self._big else (2, 12)
        (count,) = struct.unpack(self._order + ("Q" if self._big else "H"), self._at(at, size))
        if count > _MOST_ENTRIES:
            raise ValueError("no directory")
        data = self._at(at + size, count * width + struct.calcsize(self._offset))
        entries = (self._entry(data, index * width) for index in range(count))
        tags = {tag: values for tag, values in entries if values}
        (after,) = struct.unpack_from(self._order + self._offset, data, count * width)
        return tags, after

    def _entry(self, data: bytes, at: int) -> tuple[int, tuple[int, ...]]:
        tag, kind, count = struct.unpack_from(f"{self._order}HH{self._offset}", data, at)
        if tag not in _KNOWN or kind not in _TYPES:
            return tag, ()
        room = 8 if self._big else 4
        size = count * struct.calcsize(_TYPES[kind])
        if size <= room:
            raw: Any = data[at + (12 if self._big else 8) :][:size]
        else:
            (start,) = struct.unpack_from(self._order + self._offset, data, at + (12 if self._big else 8))
            raw = self._at(start, size)
        return tag, struct.unpack(f"{self._order}{count}{_TYPES[kind]}", raw)
