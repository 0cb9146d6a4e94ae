"""Picture formats beyond libvips, decoded by FFmpeg or OpenCV.

Each comes as uint8 RGB with its transparency. What is brighter than white in formats that hold linear light (OpenEXR,
Radiance, PFM) is white, and that is said.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.media.formats import PictureKind, no_page
from basnet_torch.arrays import UInt8
from basnet_torch.errors import MediaError

__all__ = ["STILL_PIXELS", "Still", "cv2_module", "ffmpeg_still", "needs_ffmpeg", "opencv_still", "still_of"]

# These are decoded whole, next to the file's own bytes; FFmpeg's frames are copied once more.
STILL_PIXELS = {"opencv": 100_000_000, "ffmpeg": 64_000_000}
_MOST_BYTES = 1 << 29  # a file may hold more, such as pictures in a row, than its first picture
_LINEAR = "its samples are linear light; what is brighter than white is white"
_SIZ = b"\xff\x4f\xff\x51"


@dataclass(frozen=True, kw_only=True, slots=True)
class Still:
    """One decoded picture.

    Attributes:
        image_HWC: uint8 RGB.
        alpha_HW: uint8, or None where it is opaque.
        notes: For the user, about how it was read.
    """

    image_HWC: UInt8
    alpha_HW: UInt8 | None = None
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def cv2_module() -> Any:
    """OpenCV without its own warnings, which would stand between ours."""
    import cv2

    if hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def opencv_still(data: Any) -> Still:
    """A BMP or JPEG 2000 from a buffer.

    Raises:
        MediaError: It is damaged.
    """
    cv2 = cv2_module()
    encoded = np.frombuffer(data, np.uint8)
    head = bytes(encoded[: 1 << 16])
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MediaError(f"cannot be read: {' '.join(str(error).split())[:200]}") from error
    finally:
        del encoded  # a map cannot close while an array looks at it
    if pixels is None:
        raise MediaError("cannot be read: the file is damaged or of an unknown variant")
    if head[:2] == b"BM" and pixels.ndim == 3:
        # OpenCV takes a fourth byte of no meaning for transparency; where it has one, the header has a mask for it.
        size, form = struct.unpack_from("<I", head, 14)[0], struct.unpack_from("<I", head.ljust(34, b"\0"), 30)[0]
        if not (size >= 56 and form == 3 and any(head[66:70]) and pixels[..., 3:].any()):
            pixels = pixels[..., :3]
    return still_of(pixels, (1 << _jpeg2000_bits(head)) - 1, blue_first=True)


def _jpeg2000_bits(head: bytes) -> int:
    """Of the samples, 1 to 16."""
    at = head.find(_SIZ)
    return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else 16


def needs_ffmpeg(kind: PictureKind, head: bytes) -> bool:
    """Whether FFmpeg decodes it; OpenCV leaves out gray JPEG 2000 with alpha."""
    at = head.find(_SIZ)
    return kind.reader == "ffmpeg" or (kind.codec == "jpeg2000" and at >= 0 and head[at + 40 : at + 42] == b"\0\2")


def ffmpeg_still(kind: PictureKind, file: BinaryIO, path: Path, *, max_pixels: int, page: int | None) -> Still:
    """A picture of one of FFmpeg's formats.

    Args:
        kind: Its format.
        file: The opened file.
        path: Where it is.
        max_pixels: Larger ones are refused.
        page: Of an icon, which of its pictures, from 1; None takes the largest.

    Raises:
        MediaError: It is damaged or too large, or has no such page.
    """
    import av

    try:
        if kind.codec == "ico":
            frame = _icon(path, max_pixels, page)
        else:
            file.seek(0)
            decoder: Any = av.CodecContext.create(kind.codec, "r")
            decoder.thread_count = 1
            decoder.options = {"max_pixels": str(max_pixels)}
            data = file.read(_MOST_BYTES)
            data = _named_tuples(data) if kind.codec == "pam" else data
            frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
            frame = frames[0] if frames else None
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        raise MediaError(f"cannot be read: this {kind.name} is damaged, or above --max-pixels") from error
    if frame is None:
        raise MediaError(f"cannot be read: this {kind.name} is cut short or damaged")
    return _of_frame(kind, frame, file)


def _icon(path: Path, max_pixels: int, page: int | None) -> Any:
    import av

    with av.open(str(path.absolute()), format="ico", options={"max_pixels": str(max_pixels)}) as container:
        streams = container.streams.video
        if page is not None and page > len(streams):
            raise no_page(len(streams), page)
        largest = max(streams, key=lambda stream: stream.width * stream.height)
        stream = largest if page is None else streams[page - 1]
        return next(iter(container.decode(stream)), None)


def _named_tuples(data: bytes) -> bytes:
    """A PAM whose header names its kind of pixels, which may be left out but which FFmpeg needs."""
    head, mark, rest = data.partition(b"ENDHDR")
    depth = re.search(rb"^DEPTH\s+(\d)", head, re.MULTILINE)
    if b"TUPLTYPE" in head or depth is None or not mark:
        return data
    kind = {b"1": b"GRAYSCALE", b"2": b"GRAYSCALE_ALPHA", b"3": b"RGB", b"4": b"RGB_ALPHA"}.get(depth[1], b"RGB")
    return head + b"TUPLTYPE " + kind + b"\n" + mark + rest


def _of_frame(kind: PictureKind, frame: Any, file: BinaryIO) -> Still:
    name, bits = frame.format.name, max(component.bits for component in frame.format.components)
    clear = any(component.is_alpha for component in frame.format.components) or name == "pal8"
    if "f32" in name or "f16" in name:
        return _linear(frame, clear=clear)
    if bits > 8:
        pixels = frame.reformat(format="rgba64le" if clear else "rgb48le").to_ndarray()
    else:
        pixels = frame.reformat(format="rgba" if clear else "rgb24").to_ndarray()
    if kind.codec == "targa":  # it says how many bits of the fourth channel are transparency
        file.seek(17)
        clear = clear and bool(file.read(1)[0] & 0x0F)
    if pixels.shape[2] == 4 and not (clear and kind.codec != "xwd" and pixels[..., 3].any()):
        pixels = pixels[..., :3]
    return still_of(pixels, 65535)


def _linear(frame: Any, *, clear: bool) -> Still:
    """Linear light as sRGB shows it."""
    channels = "gbrapf32le" if clear else "gbrpf32le"
    values = np.nan_to_num(frame.reformat(format=channels).to_ndarray(), nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    light = values[..., :3]
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    pixels = np.dstack([shown, values[..., 3:]])
    return replace(still_of(pixels, 1), notes=(_LINEAR,))


def still_of(pixels: NDArray[Any], top: float, *, blue_first: bool = False) -> Still:
    """Decoded samples as 8-bit color and, unless everything is opaque, transparency.

    Args:
        pixels: H,W or H,W,C with 1 to 4 channels: gray or color, with or without alpha.
        top: The value that is white, where samples are no bytes.
        blue_first: As OpenCV gives them.
    """
    cv2 = cv2_module()
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels.astype(np.float32) * np.float32(255 / top)).clip(0, 255).astype(np.uint8)
    bands = pixels.shape[2]
    alpha_HW = np.ascontiguousarray(pixels[..., -1]) if bands in (2, 4) else None
    if alpha_HW is not None and alpha_HW.min() == 255:
        alpha_HW = None
    if bands < 3:
        image_HWC = cv2.cvtColor(np.ascontiguousarray(pixels[..., 0]), cv2.COLOR_GRAY2RGB)
    elif blue_first:
        image_HWC = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if bands == 4 else cv2.COLOR_BGR2RGB)
    else:
        image_HWC = np.ascontiguousarray(pixels[..., :3])
    return Still(image_HWC=cast(UInt8, image_HWC), alpha_HW=alpha_HW)
