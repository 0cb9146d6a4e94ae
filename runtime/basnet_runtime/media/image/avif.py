"""Animated AVIF beyond OpenCV: orientation, bit depth, gray with alpha.

The turn (irot) and the mirror (imir) stand in the description of the track's samples, or beside the still picture.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.media.formats import brands_of
from basnet_torch.errors import MediaError

__all__ = ["avif_bits", "avif_orientation", "gray_frames", "is_avif_sequence"]

_HOLDING = {b"moov": 8, b"trak": 8, b"mdia": 8, b"minf": 8, b"stbl": 8, b"stsd": 16, b"meta": 12, b"iprp": 8}
_ENTRY = 86  # from the beginning of a track's sample description to the boxes inside it
# By quarter turns to the left: the EXIF orientation without a mirror after them, top to bottom, and left to right.
_ORIENTATIONS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))


def is_avif_sequence(head: bytes) -> bool:
    r"""Whether a file's first bytes announce moving AVIF pictures.

    >>> is_avif_sequence(b"\0\0\0\x14ftypavif\0\0\0\0avis"), is_avif_sequence(b"\0\0\0\x14ftypavif\0\0\0\0mif1")
    (True, False)
    """
    return b"avis" in brands_of(head)


def avif_orientation(data: bytes) -> int:
    """How the stored pixels lie, 1 to 8, as EXIF counts."""
    track, still = _properties(data)
    found = track if b"irot" in track or b"imir" in track else still
    turn = found[b"irot"][0] & 3 if found.get(b"irot") else 0
    mirror = 1 + (found[b"imir"][0] & 1) if found.get(b"imir") else 0
    return _ORIENTATIONS[turn][mirror]


def avif_bits(data: bytes) -> int:
    """Of each sample: 8, 10 or 12."""
    track, still = _properties(data)
    configuration = track.get(b"av1C") or still.get(b"av1C") or b""
    flags = configuration[2] if len(configuration) > 2 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _properties(data: bytes) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The boxes that describe the first track's samples, and those of the still picture."""
    track: dict[bytes, bytes] = {}
    still: dict[bytes, bytes] = {}
    for name, start, stop in _boxes(data, 0, len(data)):
        if name == b"av01" and not track:
            track = {inner: data[at:end] for inner, at, end in _flat(data, start - 8 + _ENTRY, stop)}
        elif name == b"ipco":
            for inner, at, end in _flat(data, start, stop):
                still.setdefault(inner, data[at:end])
    return track, still


def _boxes(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, beginning and end of what is inside each box, and of the boxes that hold descriptions."""
    for name, at, end in _flat(data, start, stop):
        yield name, at, end
        if name in _HOLDING:
            yield from _boxes(data, at - 8 + _HOLDING[name], end)


def _flat(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= stop:
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 0:
            size = stop - start
        if not 8 <= size <= stop - start:
            return
        yield name, start + 8, start + size
        start += size


def gray_frames(data: bytes, most: int) -> tuple[list[NDArray[Any]], list[int]]:
    """Decode gray frames with alpha, bytes H,W,2, and their delays in ms.

    OpenCV does not read these; FFmpeg reads the transparency as a track of its own.

    Raises:
        MediaError: They are damaged.
    """
    import av

    try:
        planes, delays = _planes(data, 0, most)
        alphas, _ = _planes(data, 1, most)
        if len({plane.shape for plane in (*planes, *alphas)}) > 1:
            raise ValueError("frames of different sizes")
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise MediaError("cannot be read: the animation is damaged or of an unknown variant") from error
    alphas += [np.full_like(plane, 255) for plane in planes[len(alphas) :]]
    return [np.dstack(pair) for pair in zip(planes, alphas, strict=False)], delays


def _planes(data: bytes, track: int, most: int) -> tuple[list[NDArray[Any]], list[int]]:
    """The brightness of every frame of a track, as bytes from black to white."""
    import av

    planes: list[NDArray[Any]] = []
    delays: list[int] = []
    container: Any
    with av.open(BytesIO(data), format="mov") as container:
        streams = container.streams.video
        tracks = [each for each in streams if each.frames > 1] or streams  # the still picture comes as streams, too
        if track >= len(tracks):
            return [], []
        stream = tracks[track]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if len(planes) >= most:
                break
            deep = any(component.bits > 8 for component in frame.format.components)
            bits = int(re.search(r"gray(\d+)", frame.format.name)[1]) if deep else 8  # type: ignore[index]
            values = frame.to_ndarray().astype(np.float32) / np.float32((1 << bits) - 1)
            if frame.color_range == av.video.reformatter.ColorRange.MPEG:
                values = (values - 16 / 255) * (255 / 219)
            planes.append(np.rint(values.clip(0, 1) * 255).astype(np.uint8))
            delays.append(round(1000 * (frame.duration or 0) * float(stream.time_base or 0)))
    return planes, delays
