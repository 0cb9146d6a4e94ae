"""Temporary strip file: pixels on their way to an encoder, outside memory.

    with StripFile(target, height) as file:
        file.add(strip)
        ...
        encode(file.image())

The file is an uncompressed BigTIFF: the one format that libvips reads a few rows at a time, without mapping the whole
file, and that holds any number of rows and bands.
"""

from __future__ import annotations

import struct
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from basnet_runtime.media.image.pictures import vips_module
from basnet_torch.arrays import UInt8
from basnet_torch.files import Closing, PendingFile, disk_errors

__all__ = ["StripFile"]

_TIFF_ROWS = 8


class StripFile(Closing):
    """Strips of rows, h,W or h,W,C, in a temporary file removed at the block's end.

    Attributes:
        bands: 1 to 4, known after the first strip.
    """

    def __init__(self, target: Path, height: int) -> None:
        """`target`: the result, whose folder is used; `height`: rows of all strips."""
        self._target = target
        self._height = height
        self._pending = PendingFile(target.with_suffix(".tif"), overwrite=False)
        self._file: FileIO | None = None
        self._source: BinaryIO | None = None
        self.bands = 0

    def add(self, strip: UInt8) -> None:
        """Write the next rows.

        Raises:
            MediaError: The disk is full.
        """
        with disk_errors(f"{self._target}: cannot be written"):
            if self._file is None:
                self._file = self._pending.path.open("wb", buffering=0)
                self.bands = 1 if strip.ndim == 2 else strip.shape[2]
                _write_all(self._file, _tiff_header(self._height, strip.shape[1], self.bands))
            _write_all(self._file, np.ascontiguousarray(strip).reshape(-1).data)

    def image(self) -> Any:
        """Everything as one libvips image, to be read once, from top to bottom."""
        vips = vips_module()
        self._source = self._pending.path.open("rb")
        source = vips.Source.new_from_descriptor(self._source.fileno())
        return vips.Image.new_from_source(source, "", access="sequential", fail_on="truncated")

    def close(self) -> None:
        """Remove the file."""
        for file in (self._file, self._source):
            if file is not None:
                file.close()
        self._pending.discard()


def _write_all(file: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _tiff_header(height: int, width: int, bands: int) -> bytes:
    """Everything before the pixels of an uncompressed BigTIFF, whose pixels may be more than 4 GB."""
    count = -(-height // _TIFF_ROWS)
    size = _TIFF_ROWS * width * bands
    short, long8 = 3, 16
    entries: list[tuple[int, int, list[int]]] = [
        (256, long8, [width]),
        (257, long8, [height]),
        (258, short, [8] * bands),
        (259, short, [1]),  # not compressed
        (262, short, [1 if bands == 1 else 2]),  # gray or RGB
        (273, long8, list(range(0, count * size, size))),  # where each strip is, from the end of this header
        (277, short, [bands]),
        (278, long8, [_TIFF_ROWS]),
        (279, long8, [size] * (count - 1) + [height * width * bands - (count - 1) * size]),
    ]
    if bands == 4:
        entries.append((338, short, [2]))  # straight alpha
    outside = 16 + 8 + 20 * len(entries) + 8
    total = outside + sum(8 * len(values) for _, kind, values in entries if kind == long8 and len(values) > 1)
    directory, beyond = struct.pack("<Q", len(entries)), b""
    for tag, kind, values in entries:
        stored = [value + total for value in values] if tag == 273 else values
        packed = struct.pack(f"<{len(stored)}{'H' if kind == short else 'Q'}", *stored)
        directory += struct.pack("<HHQ", tag, kind, len(stored))
        directory += packed.ljust(8, b"\0") if len(packed) <= 8 else struct.pack("<Q", outside + len(beyond))
        beyond += packed if len(packed) > 8 else b""
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + directory + bytes(8) + beyond
