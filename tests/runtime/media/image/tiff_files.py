"""TIFF files written byte by byte, for what no library writes: odd samples, extra bands, thumbnails, false codecs."""

import struct
import zlib

import numpy as np

_KINDS = {1: "B", 3: "H", 4: "I", 13: "I"}


def tiff(*pages, order="<"):
    """A classic TIFF of pages made by `page`; a page's `inner` become its SubIFDs."""
    data = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))
    link = 4
    for each in pages:
        start, after = _append(data, each, order)
        struct.pack_into(f"{order}I", data, link, start)
        link = after
    return bytes(data)


def page(pixels, *, photometric=None, extra=(), compression=8, inner=(), tags=None, squeeze=None, tile=0):
    """What a page holds: its samples as H,W or H,W,C of any type, and further tags as {number: (kind, values)}."""
    pixels = np.atleast_3d(pixels)
    height, width, bands = pixels.shape
    photometric = photometric if photometric is not None else (1 if bands - len(extra) < 3 else 2)
    form = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * pixels.itemsize] * bands),
        259: (3, [compression]),
        262: (3, [photometric]),
        277: (3, [bands]),
        339: (3, [form] * bands),
        **({338: (3, list(extra))} if extra else {}),
        **({322: (3, [tile]), 323: (3, [tile])} if tile else {278: (3, [8])}),
        **(tags or {}),
    }
    squeeze = squeeze or (zlib.compress if compression == 8 else bytes)
    return {"entries": entries, "pixels": pixels, "squeeze": squeeze, "inner": inner, "tile": tile}


def _blocks(each, order):
    pixels, tile = each["pixels"].astype(each["pixels"].dtype.newbyteorder(order)), each["tile"]
    height, width = pixels.shape[:2]
    if not tile:
        return [pixels[y : y + 8].tobytes() for y in range(0, height, 8)]
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)))
    rows, columns = range(0, height, tile), range(0, width, tile)
    return [padded[y : y + tile, x : x + tile].tobytes() for y in rows for x in columns]


def _append(data, each, order):
    """Append a page's blocks and directory; returns where it begins and where the next one's offset belongs."""
    starts, sizes = [], []
    for block in _blocks(each, order):
        packed = each["squeeze"](block)
        starts.append(len(data))
        sizes.append(len(packed))
        data += packed
    inner = [_append(data, sub, order)[0] for sub in each["inner"]]
    entries = dict(each["entries"])
    where, length = (324, 325) if each["tile"] else (273, 279)
    entries[where], entries[length] = (4, starts), (4, sizes)
    if inner:
        entries[330] = (4, inner)
    packed = []
    for tag, (kind, values) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(values)}{_KINDS[kind]}", *values)
        if len(raw) > 4:
            data += bytes(len(data) % 2)
            values_at = struct.pack(f"{order}I", len(data))
            data += raw
            raw = values_at
        packed.append(struct.pack(f"{order}HHI", tag, kind, len(values)) + raw.ljust(4, b"\0"))
    data += bytes(len(data) % 2)
    start = len(data)
    data += struct.pack(f"{order}H", len(packed)) + b"".join(packed) + bytes(4)
    return start, len(data) - 4
