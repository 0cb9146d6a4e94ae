"""Picture metadata: EXIF, XMP, IPTC, resolution, orientation.

Results are upright and in sRGB, so orientation becomes 1 and an embedded profile becomes sRGB's. The rest of EXIF, XMP
and IPTC survives as far as the output's format holds it (TIFF holds no EXIF, PNG and WebP no IPTC), but never the EXIF
thumbnail: it shows the background that a cut-out leaves out.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.frame import Metadata

__all__ = [
    "LATE_BYTES",
    "clean_exif",
    "hdr_note",
    "metadata_of",
    "stored_orientation",
    "surviving",
    "tagged",
    "upright",
    "with_late_chunks",
]

LATE_BYTES = 1 << 17

_ORIENTATION = 0x0112
_THUMBNAIL_AT, _THUMBNAIL_SIZE = 0x0201, 0x0202
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>))\s*([1-8])""")
_MOST_TEXT = 1 << 24  # bytes; a bomb has more
_CURVES = {16: "PQ", 18: "HLG"}
_CODED_COLORS = re.compile(rb"colrnclx..(..)", re.DOTALL)  # the curve, of AVIF and HEIC
_PNG_COLORS = re.compile(rb"\0\0\0\x04cICP.(.)", re.DOTALL)
_LATE_CHUNK = re.compile(rb"(....)(eXIf|iTXt(?=XML:com\.adobe\.xmp\0))", re.DOTALL)
_RAW_PROFILE = re.compile(r"^png-comment-\d+-Raw profile type (exif|APP1)$", re.IGNORECASE)


def metadata_of(image: Any, notes: list[str]) -> Metadata:
    """Read a libvips image's metadata; what is damaged is left out and noted."""
    fields = set(image.get_fields())
    exif = _blob(image, fields, "exif-data")
    if exif is not None and (exif := clean_exif(exif)) is None:
        notes.append("its EXIF data are damaged and were left out")
    xmp = _blob(image, fields, "xmp-data")
    turned = 5 <= stored_orientation(image) <= 8
    x, y = (image.yres, image.xres) if turned else (image.xres, image.yres)
    return Metadata(
        exif=exif,
        xmp=None if xmp is None else _XMP_ORIENTATION.sub(rb"\g<1>1", xmp),
        iptc=_blob(image, fields, "iptc-data"),
        profile="icc-profile-data" in fields,
        x_per_mm=x,
        y_per_mm=y,
    )


def with_late_chunks(image: Any, tail: bytes) -> Any:
    """Add EXIF and XMP that stand behind the pixels of a PNG.

    Args:
        image: Opened for reading from top to bottom.
        tail: The file's last `LATE_BYTES`, or all of it.
    """
    from pyvips import GValue

    fields = image.get_fields()
    for found in _LATE_CHUNK.finditer(tail):
        end = found.end() + int.from_bytes(found[1], "big")
        data, checksum = tail[found.end() : end], tail[end : end + 4]
        if zlib.crc32(data, zlib.crc32(found[2])).to_bytes(4, "big") != checksum:
            continue  # bytes that look like a chunk
        name, blob = ("exif-data", data) if found[2] == b"eXIf" else ("xmp-data", _text_of(data))
        if blob and name not in fields:
            image = image.copy()
            image.set_type(GValue.blob_type, name, blob)
            if name == "exif-data" and (orientation := _orientation_of(blob)):
                image.set_type(GValue.gint_type, "orientation", orientation)
    return image


def _text_of(data: bytes) -> bytes:
    """What an iTXt chunk says after its keyword; nothing where it is damaged."""
    compressed, rest = data.partition(b"\0")[2][:1], data.partition(b"\0")[2][2:]
    text = rest.split(b"\0", 2)[-1]  # after a language, and the keyword in that language
    with suppress(zlib.error):
        return zlib.decompressobj().decompress(text, _MOST_TEXT) if compressed == b"\1" else text
    return b""


def hdr_note(head: bytes) -> list[str]:
    r"""What a user should know where the picture is HDR.

    >>> hdr_note(b"\0\0\0\x0cftypavif" + b"colrnclx" + struct.pack(">HHH", 9, 16, 9))
    ['is HDR (PQ); masks are found on its samples as they are stored']
    """
    curve = 0
    if head[4:8] == b"ftyp" and (found := _CODED_COLORS.search(head)):
        curve = int.from_bytes(found[1], "big")
    elif head[:4] == b"\x89PNG" and (found := _PNG_COLORS.search(head)):
        curve = found[1][0]
    if curve not in _CURVES:
        return []
    return [f"is HDR ({_CURVES[curve]}); masks are found on its samples as they are stored"]


def surviving(metadata: Metadata | None, *, is_mask: bool) -> Metadata | None:
    """Choose what goes into a result: for a mask the resolution alone."""
    if metadata is None or not is_mask:
        return metadata
    return Metadata(x_per_mm=metadata.x_per_mm, y_per_mm=metadata.y_per_mm)


def tagged(image: Any, metadata: Metadata) -> Any:
    """A copy of a libvips image that carries the metadata."""
    from pyvips import GValue

    image = image.copy()
    for name, blob in (("exif-data", metadata.exif), ("xmp-data", metadata.xmp), ("iptc-data", metadata.iptc)):
        if blob is not None:
            image.set_type(GValue.blob_type, name, blob)
    return image.copy(xres=metadata.x_per_mm, yres=metadata.y_per_mm)  # last: libvips takes EXIF's when that is set


def _blob(image: Any, fields: set[str], name: str) -> bytes | None:
    if name not in fields:
        return None
    return bytes(image.get(name)) or None


def stored_orientation(image: Any) -> int:
    """Read the orientation, 1 to 8: from EXIF, EXIF in PNG text, else XMP."""
    fields = image.get_fields()
    if "orientation" in fields:
        return int(image.get("orientation"))
    for name in fields:
        if _RAW_PROFILE.match(name):
            with suppress(UnicodeDecodeError):  # no text after all
                text = str(image.get(name))  # ImageMagick's: a name, a length and hex digits
                with suppress(ValueError, IndexError):
                    return _orientation_of(bytes.fromhex("".join(text.split()[2:]))) or 1
                return 1
    if "xmp-data" in fields and (found := _XMP_ORIENTATION.search(bytes(image.get("xmp-data")))):
        return int(found[2])
    return 1


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn pixels H,W or H,W,C upright from an EXIF orientation.

    >>> upright(np.array([[1, 2]]), 6).tolist(), upright(np.array([[1, 2]]), 2).tolist()
    ([[1], [2]], [[2, 1]])
    """
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def clean_exif(exif: bytes) -> bytes | None:
    r"""Reset orientation and drop the thumbnail of EXIF; None where damaged.

    >>> tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
    >>> _orientation_of(clean_exif(b"Exif\0\0" + tiff))
    1
    """
    try:
        return _cleaned(exif)
    except (struct.error, IndexError, ValueError):
        return None


def _cleaned(exif: bytes) -> bytes:
    start = 6 if exif[:6] == b"Exif\0\0" else 0
    data = bytearray(exif[start:])
    order, first = _tiff_header(data)
    entries = _entries(data, order, first)
    if entries.stop + 4 > len(data) or len(entries) > 1000:  # beyond the block: libraries would read past its end
        raise ValueError("the directory is cut short")
    for at in entries:
        if struct.unpack_from(order + "H", data, at)[0] == _ORIENTATION:
            struct.pack_into(order + "HIHH", data, at + 2, 3, 1, 1, 0)
    link = first + 2 + 12 * struct.unpack_from(order + "H", data, first)[0]
    (second,) = struct.unpack_from(order + "I", data, link)
    struct.pack_into(order + "I", data, link, 0)
    if second:
        _blank_thumbnail(data, order, second)
    return bytes(exif[:start]) + bytes(data)


def _tiff_header(data: bytes | bytearray) -> tuple[str, int]:
    """Byte order and where the first directory is."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(data[:4]))
    if order is None:
        raise ValueError("no TIFF header")
    return order, struct.unpack_from(order + "I", data, 4)[0]


def _entries(data: bytes | bytearray, order: str, directory: int) -> range:
    (count,) = struct.unpack_from(order + "H", data, directory)
    return range(directory + 2, directory + 2 + 12 * count, 12)


def _blank_thumbnail(data: bytearray, order: str, directory: int) -> None:
    """Overwrite the thumbnail's bytes with zeros: nothing points at them any more."""
    at = size = 0
    with suppress(struct.error):
        for entry in _entries(data, order, directory):
            tag, _, _, value = struct.unpack_from(order + "HHII", data, entry)
            at = value if tag == _THUMBNAIL_AT else at
            size = value if tag == _THUMBNAIL_SIZE else size
    stop = min(at + size, len(data))
    if 0 < at < stop:
        data[at:stop] = bytes(stop - at)


def _orientation_of(exif: bytes | None) -> int | None:
    """The orientation a block says, or None."""
    data = (exif or b"").removeprefix(b"Exif\0\0")
    with suppress(struct.error, ValueError):
        order, first = _tiff_header(data)
        for at in _entries(data, order, first):
            tag, _, _, value = struct.unpack_from(order + "HHIH", data, at)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else None
    return None
