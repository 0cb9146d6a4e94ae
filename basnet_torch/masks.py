"""Masks as they are stored, told apart: black and white, soft, of 0 and 1, and label maps of segmentation sets.

A label map holds numbers of classes or instances, in gray (0, 1, 2 ..., 255 for what is left out) or by a palette, as
PASCAL VOC's. Read as gray it would train outlines or a mask that is nearly black, so it is refused until it is asked
for: then what is not 0 is object, and what is left out counts neither in the loss nor in a score.

Legend: H height, W width.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_torch.config import MaskValues
from basnet_torch.errors import BadPairError, MaskValuesError

__all__ = ["Truth", "decode_mask", "decode_picture", "refuse_without_labels"]

UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]

_FAINT = 128  # a mask's brightest value below which nothing of it would count as object
_FEW = 64  # values; a soft mask has more, a label map of one picture less
_MOST_LABELS = 200  # the largest number of a class in eight bits; above it are the light shades of a mask
_PARTS = range(2, 13)  # masks that are means over so many people or frames have that many even steps
_VOID = ((224, 224, 192), (255, 255, 255))  # colors of what is left out: PASCAL VOC's, and white
_PNG = b"\x89PNG\r\n\x1a\n"
# OpenCV would write lines of its own on standard error, besides the error that names the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """A mask, read.

    Attributes:
        mask_HW: uint8, 0 background to 255 object.
        ignored_HW: Where nothing is known, which no loss and no score may count; None where all counts.
        has_labels: Of a label map, whether it holds an object.
        odd: What a data report counts it under.
    """

    mask_HW: UInt8
    ignored_HW: Bool | None = None
    has_labels: bool = False
    odd: tuple[str, ...] = ()


def decode_mask(data: bytes, name: str, values: MaskValues = "auto") -> Truth:
    """Read a mask, turned as its EXIF says like its picture.

    Args:
        data: The file's content.
        name: What errors call it.
        values: What its values mean; `auto` takes gray and refuses label maps.

    Raises:
        BadPairError: It is damaged, or holds nothing that counts.
        MaskValuesError: It is a label map, or with `labels` none.
    """
    stored = _decoded(data, name, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if values == "labels":
        return _from_labels(stored, data, name)
    if data.startswith(b"GIF") and stored.ndim == 3 and _is_gray(stored):
        stored = stored[..., 0]  # shades by a palette, which is all that a GIF has
    in_color = stored.ndim == 3
    if values == "auto" and in_color and (colors := _few_colors(stored)) is not None:
        raise MaskValuesError(_told(name, f"a label map of {len(colors)} colors"))
    gray = _grayed(stored) if in_color else stored
    if gray.min() == gray.max():
        _refuse_alpha(data, name)
        indices = _palette_indices(data, name)  # a palette of one color may hide an object
        gray = gray if indices is None or indices.min() == indices.max() else indices
    if values == "auto" and (found := _looks_like_labels(gray)) is not None:
        raise MaskValuesError(_told(name, f"a label map of the values {_some(found)}"))
    mask = _eight_bits(gray)
    peak = int(mask.max())
    odd = {"in_colour": in_color, "zero_one": peak == 1, "faint": 1 < peak < _FAINT, "empty": peak == 0}
    return Truth(mask_HW=_stretched(mask), odd=tuple(kind for kind, holds in odd.items() if holds))


def decode_picture(data: bytes, name: str) -> UInt8:
    """Read a picture as uint8 H,W,3 RGB.

    Raises:
        BadPairError: It is damaged.
    """
    return _eight_bits(_decoded(data, name, cv2.IMREAD_COLOR_RGB))


def refuse_without_labels(where: str, values: MaskValues, *, has_labels: bool) -> None:
    """Raise MaskValuesError when masks were read as label maps, and none of a set holds a label."""
    if values == "labels" and not has_labels:
        raise MaskValuesError(f"{where}: no mask holds a label besides 0 and 255; leave --mask-values out")


def _told(name: str, what: str) -> str:
    return (
        f"{name}: its mask is {what}; --mask-values labels reads it (not 0 is object, 255 and VOC's border are "
        "left out), --mask-values gray takes it as it is"
    )


def _decoded(data: bytes, name: str, mode: int) -> NDArray[np.generic]:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
    except cv2.error:  # a header that promises more than there may be
        decoded = None
    if decoded is None:
        raise BadPairError(f"{name}: {len(data)} bytes that are no readable picture; fetch it again or remove the pair")
    if decoded.dtype.kind == "f":
        if not np.isfinite(decoded).all() or decoded.min() < 0 or decoded.max() > 255:
            raise BadPairError(f"{name}: holds floats outside 0..1 and 0..255; store it with 8 bits")
        return np.asarray(np.rint(decoded * (255.0 if decoded.max() <= 1 else 1.0)), np.uint8)
    if decoded.dtype.kind == "i" and decoded.min() < 0:
        raise BadPairError(f"{name}: holds values below 0; store it with 8 bits")
    return cast("NDArray[np.generic]", decoded)


def _eight_bits(decoded: NDArray[np.generic]) -> UInt8:
    values = np.asarray(decoded)
    if values.dtype != np.uint8 and values.max() > 255:  # else eight bits that are stored in sixteen
        values = np.right_shift(values.astype(np.uint16), 8)
    return np.asarray(values, np.uint8)


def _is_gray(colors: NDArray[np.generic]) -> bool:
    return bool((colors == colors[..., :1]).all())


def _grayed(colors: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.asarray(cv2.cvtColor(cast("NDArray[np.uint8]", colors), cv2.COLOR_BGR2GRAY))


def _refuse_alpha(data: bytes, name: str) -> None:
    whole = _decoded(data, name, cv2.IMREAD_UNCHANGED)
    if whole.ndim == 3 and whole.shape[2] == 4 and np.ptp(np.asarray(whole[..., 3], np.int64)):
        raise BadPairError(f"{name}: its mask has the object in its transparency alone; store it as grey")


def _few_colors(stored: NDArray[np.generic]) -> NDArray[np.int64] | None:
    """The colors of a label map, as one number each; None of what is gray, soft, or one color on black."""
    if _is_gray(stored):
        return None
    planes = np.asarray(stored, np.int64)
    colors = np.unique(planes[..., 0] << 32 | planes[..., 1] << 16 | planes[..., 2])
    is_object_on_black = len(colors) == 2 and colors[0] == 0
    return None if len(colors) > _FEW or len(colors) == 1 or is_object_on_black else colors


def _looks_like_labels(gray: NDArray[np.generic]) -> NDArray[np.int64] | None:
    """The values, where they are few and are numbers rather than shades; None of a mask.

    Labels are small numbers, and what is left out is one large one, most often the largest there is. A mask has light
    shades as well as dark ones, or one shade; a few even steps are means over several people's masks.
    """
    values = np.unique(np.asarray(gray)).astype(np.int64)
    if len(values) > _FEW or len(values) == 1:
        return None
    peak = int(values[-1])
    if peak > 255:
        between = values[(values > 0) & (values < 65535)]
        is_small = (between <= 255).any() or (len(values) > 2 and peak < _FAINT << 8)
        return values if is_small else None
    small = values[(values > 0) & (values < _FAINT)]
    is_one_shade = len(values) == 2 and values[0] == 0
    has_light_shades = len(values) - len(small) - (values[0] == 0) > 1
    return None if is_one_shade or has_light_shades or not len(small) or _are_even_steps(small) else values


def _are_even_steps(shades: NDArray[np.int64]) -> bool:
    """Whether all are parts of 255 by one small number, rounded either way."""
    for parts in _PARTS:
        step = 255 / parts
        nearest = np.rint(shades / step)
        if nearest.min() >= 1 and np.abs(shades - nearest * step).max() < 1:
            return True
    return False


def _some(values: NDArray[Any]) -> str:
    shown = [str(v) for v in values]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:4], "...", shown[-1]])


def _stretched(mask: UInt8) -> UInt8:
    """Masks of 0 and one other value in black and white; others as they are."""
    peak = mask.max()
    if not 0 < peak < 255 or not np.all((mask == 0) | (mask == peak)):
        return mask
    return np.where(mask > 0, np.uint8(255), np.uint8(0))


def _from_labels(stored: NDArray[np.generic], data: bytes, name: str) -> Truth:
    indices = _palette_indices(data, name)
    values = np.asarray(stored if indices is None else indices)
    if values.ndim == 3 and _is_gray(values):
        values = values[..., 0]
    if values.ndim == 3:
        is_object = values.any(axis=2)
        ignored = np.zeros(is_object.shape, bool)
        for red, green, blue in _VOID:
            ignored |= (values == (blue, green, red)).all(axis=2)
    else:
        shades = np.unique(values[(values > _MOST_LABELS) & (values < 255)])
        if values.max() <= 255 and len(shades):
            raise MaskValuesError(
                f"{name}: its mask holds {_some(shades)}, and labels are 0 to {_MOST_LABELS}, and 255 for what is left "
                "out; leave --mask-values out, or store it so"
            )
        is_object = values != 0
        ignored = values == (255 if values.max() <= 255 else 65535)
    if ignored.all():
        raise BadPairError(f"{name}: its mask leaves every pixel out; remove the pair", kind="ignored")
    is_object &= ~ignored
    has_labels = bool(is_object.any())
    return Truth(
        mask_HW=np.where(is_object, np.uint8(255), np.uint8(0)),
        ignored_HW=ignored if ignored.any() else None,
        has_labels=has_labels,
        odd=(*(() if has_labels else ("empty",)), *(("left_out",) if ignored.any() else ())),
    )


def _palette_indices(data: bytes, name: str) -> UInt8 | None:
    """What a PNG or TIFF with a palette stores for each pixel; None of any other file, whose reader gives its values.

    OpenCV gives colors alone, and two numbers may have one color. The same file declared gray gives the numbers.
    """
    declared = _gray_png(data) if data.startswith(_PNG) else _gray_tiff(data)
    if declared is None:
        return None
    content, bits = declared
    shades = np.asarray(_decoded(content, name, cv2.IMREAD_GRAYSCALE), np.uint16)
    return np.asarray(shades // (255 // ((1 << bits) - 1)), np.uint8)  # less than eight bits are spread to 0..255


def _gray_png(data: bytes) -> tuple[bytes, int] | None:
    """The PNG without its palette and its bits a pixel."""
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
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return None
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    if start + 2 > len(data):
        return None
    count = struct.unpack_from(f"{order}H", data, start)[0]
    tags = {}
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, number, value = struct.unpack_from(f"{order}HHIH", data, at)
        tags[tag] = (at + 8, value) if kind == 3 and number == 1 else (at + 8, 0)
    photometric, bits = tags.get(262, (0, 0)), tags.get(258, (0, 0))[1]
    if photometric[1] != 3 or bits != 8:
        return None
    changed = bytearray(data)
    struct.pack_into(f"{order}H", changed, photometric[0], 1)
    return bytes(changed), 8
