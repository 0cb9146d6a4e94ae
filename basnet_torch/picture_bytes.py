"""Facts of encoded pictures that OpenCV lacks: palettes, damage, unread formats."""

from __future__ import annotations

import logging
import struct
import zlib
from typing import Final

__all__ = ["TIFF_COMPRESSIONS", "is_damaged_tiff", "palette_as_gray", "unread_format"]

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
_BITS, _COMPRESSION, _PHOTOMETRIC = 258, 259, 262
_PALETTE, _BLACK_IS_ZERO = 3, 1
_READ_IN_TIFF = (1, 2, 3, 4, 5, 7, 8, 32773, 32809, 32946, 34676, 34677)
TIFF_COMPRESSIONS: Final = {
    1: "none",
    2: "CCITT run length",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "deflate",
    9: "JBIG (T.85)",
    10: "JBIG (T.43)",
    32766: "NeXT",
    32773: "PackBits",
    32809: "ThunderScan",
    32908: "Pixar film",
    32909: "PixarLog",
    32946: "deflate",
    33003: "JPEG 2000 (Aperio)",
    33005: "JPEG 2000 (Aperio)",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG (DNG)",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL (DNG)",
}
_NOT_READ: Final = {
    (0, b"\xff\x0a"): "JPEG XL",
    (0, b"\0\0\0\x0cJXL "): "JPEG XL",
    (0, b"\xff\xd8\xff\xf7"): "JPEG-LS",
    (0, b"%PDF-"): "PDF",
    (0, b"<svg"): "SVG",
    (0, b"<?xml"): "XML, perhaps SVG",
    (0, b"8BPS"): "Photoshop's",
    (0, b"qoif"): "QOI",
    (4, b"ftyphei"): "HEIC",
    (4, b"ftyphev"): "HEIC",
    (4, b"ftypmif1"): "HEIF",
}


def unread_format(data: bytes) -> str:
    """Name a format that OpenCV does not decode; empty where it does, or unknown."""
    tags = _tiff_tags(data)
    if tags is not None:
        number = tags[1].get(_COMPRESSION, (0, 1))[1]
        if number in _READ_IN_TIFF:
            return ""
        return f"a TIFF compressed with {TIFF_COMPRESSIONS.get(number, f'method {number}')}"
    return next((name for (at, mark), name in _NOT_READ.items() if data[at : at + len(mark)] == mark), "")


def is_damaged_tiff(data: bytes) -> bool:
    """Tell whether it is a TIFF with blocks that cannot be decoded.

    libvips refuses them where OpenCV gives black.
    """
    if data[:4] not in _TIFF:
        return False
    logging.getLogger("pyvips").addHandler(logging.NullHandler())  # else its warnings reach stderr
    import pyvips

    try:
        image = pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="error")
    except pyvips.Error:
        return False  # of its header, which OpenCV judges
    try:
        image.avg()
    except (pyvips.Error, UnicodeDecodeError) as error:  # the binding stumbles over messages that quote bytes
        return isinstance(error, UnicodeDecodeError) or "tiff2vips: " in str(error)
    return False


def palette_as_gray(data: bytes) -> tuple[bytes, int] | None:
    """Return a palette PNG or TIFF declared gray, and its bits a pixel; else None."""
    return _gray_png(data) if data.startswith(_PNG) else _gray_tiff(data)


def _gray_png(data: bytes) -> tuple[bytes, int] | None:
    """The PNG without its palette."""
    if data[12:16] != b"IHDR" or data[25:26] != b"\x03":
        return None
    header = data[12:25] + b"\0" + data[26:29]
    kept = [_PNG, data[8:12], header, struct.pack(">I", zlib.crc32(header))]
    at = 33
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"PLTE", b"tRNS", b"bKGD"):
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(kept), data[24]


def _gray_tiff(data: bytes) -> tuple[bytes, int] | None:
    """The TIFF of eight bits a pixel with its first page declared gray, black being 0."""
    found = _tiff_tags(data)
    if found is None:
        return None
    order, tags = found
    photometric, bits = tags.get(_PHOTOMETRIC, (0, 0)), tags.get(_BITS, (0, 0))[1]
    if photometric[1] != _PALETTE or bits != 8:
        return None
    changed = bytearray(data)
    struct.pack_into(f"{order}H", changed, photometric[0], _BLACK_IS_ZERO)
    return bytes(changed), 8


def _tiff_tags(data: bytes) -> tuple[str, dict[int, tuple[int, int]]] | None:
    """Byte order, and the tags of the first page of a TIFF or BigTIFF: where each one's value stands, and that value.

    A value that is no single short one is 0.
    """
    order, is_big = _TIFF.get(data[:4], ("", False))
    if not order:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, start)
    except struct.error:
        return None
    first, width, layout = (start + 8, 20, "HHQH") if is_big else (start + 2, 12, "HHIH")
    tags = {}
    for at in range(first, min(first + width * count, len(data) - width + 1), width):
        tag, kind, number, value = struct.unpack_from(f"{order}{layout}", data, at)
        tags[tag] = (at + (12 if is_big else 8), value if (kind, number) == (3, 1) else 0)
    return order, tags
