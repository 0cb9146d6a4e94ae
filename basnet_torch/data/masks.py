"""Kinds of masks: black and white, soft, of 0 and 1, and segmentation label maps.

A label map holds numbers of classes or instances, in gray (0, 1, 2 ..., 255 for what is left out) or by a palette, as
PASCAL VOC's. Read as gray it would train outlines or a mask that is nearly black, so it is refused until it is asked
for: then what is not 0 is object, and what is left out counts neither in the loss nor in a score. A trimap's numbers
have other meanings (of Oxford-IIIT Pet's 2 is background), so it is asked for by itself.

Legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Bool, UInt8
from basnet_torch.data.options import MaskValues
from basnet_torch.errors import BadPairError, MaskValuesError
from basnet_torch.picture_bytes import is_damaged_tiff, palette_as_gray, unread_format

__all__ = ["Held", "Truth", "check_labels", "decode_mask", "decode_picture"]

Held = Literal["object", "background"]

_FAINT = 128  # a mask's brightest value below which nothing of it would count as object
_FEW = 64  # values; a soft mask has more, a label map of one picture less
_MOST_LABELS = 200  # the largest number of a class in eight bits; above it are the light shades of a mask
_PARTS = range(2, 13)  # masks that are means over so many people or frames have that many even steps
_CHROMA_NOISE = 2  # steps between the channels of gray, as lossy WebP leaves them
_VOID = ((224, 224, 192), (255, 255, 255))  # colors of what is left out: PASCAL VOC's, and white
# Values of trimaps, each as object, background and what is left out: Oxford-IIIT Pet's, and those of matting
_TRIMAPS = (((1,), (2,), (3,)), ((255,), (0,), (127, 128)))
# OpenCV would write lines of its own on standard error, besides the error that names the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """A mask, read.

    Attributes:
        mask_HW: uint8, 0 background to 255 object.
        ignored_HW: Where nothing is known, which no loss and no score may count; None where all counts.
        holds: Of a label map, what of it counts.
        odd: What a data report counts it under.
    """

    mask_HW: UInt8
    ignored_HW: Bool | None = None
    holds: frozenset[Held] = frozenset()
    odd: tuple[str, ...] = ()


def decode_mask(data: bytes, name: str, values: MaskValues = "auto") -> Truth:
    """Read a mask, turned as its EXIF says like its picture.

    Args:
        data: The file's content.
        name: What errors call it.
        values: What its values mean; `auto` takes gray and refuses label maps.

    Raises:
        BadPairError: It is damaged, or holds nothing that counts.
        MaskValuesError: It is a label map, or with `labels` or `trimap` none.
    """
    stored = _decoded(data, name, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if values in ("labels", "trimap"):
        numbers = _numbers(stored, data, name)
        return _from_labels(numbers, name) if values == "labels" else _from_trimap(numbers, name)
    if data.startswith(b"GIF") and stored.ndim == 3 and _is_gray(stored):
        stored = stored[..., 0]  # shades by a palette, which is all that a GIF has
    in_color = stored.ndim == 3
    if values == "auto" and in_color and (colors := _few_colors(stored)) is not None:
        raise MaskValuesError(_told(name, f"a label map of {len(colors)} colors"))
    gray = np.asarray(cv2.cvtColor(cast("UInt8", stored), cv2.COLOR_BGR2GRAY)) if in_color else stored
    if gray.min() == gray.max():
        _refuse_alpha(data, name)
        indices = _palette_indices(data, name)  # a palette of one color may hide an object
        gray = gray if indices is None or indices.min() == indices.max() else indices
    if values == "auto" and (found := _looks_like_labels(gray)) is not None:
        raise MaskValuesError(_told(name, f"a label map of the values {_some(found)}", found))
    mask = _eight_bits(gray)
    peak = int(mask.max())
    odd = {"in_color": in_color, "zero_one": peak == 1, "faint": 1 < peak < _FAINT, "empty": peak == 0}
    return Truth(mask_HW=_stretched(mask), odd=tuple(kind for kind, holds in odd.items() if holds))


def decode_picture(data: bytes, name: str) -> UInt8:
    """Read a picture as uint8 H,W,3 RGB.

    Raises:
        BadPairError: It is damaged.
    """
    return _eight_bits(_decoded(data, name, cv2.IMREAD_COLOR_RGB))


def check_labels(where: str, values: MaskValues, held: AbstractSet[Held]) -> None:
    """Raise MaskValuesError when masks read as label maps are none.

    A set without background is refused as well.

    Args:
        where: What the error calls the set.
        values: What the masks' values mean.
        held: What all of its label maps hold together.
    """
    if values != "labels":
        return
    if "object" not in held:
        raise MaskValuesError(f"{where}: no mask holds a label besides 0 and 255; leave --mask-values out")
    if "background" not in held:
        raise MaskValuesError(
            f"{where}: no mask holds a 0, so that all would be object; write the background as 0, or give "
            "--mask-values trimap where 1 is object, 2 background and 3 unknown"
        )


def _told(name: str, what: str, values: NDArray[np.int64] | None = None) -> str:
    if values is not None and set(values.tolist()) <= {1, 2, 3}:
        return (
            f"{name}: its mask is {what}; --mask-values trimap reads it where 1 is object, 2 background and 3 unknown, "
            "--mask-values labels where not 0 is object"
        )
    return (
        f"{name}: its mask is {what}; --mask-values labels reads it (not 0 is object, 255 and VOC's border are "
        "left out), --mask-values gray takes it as it is"
    )


def _decoded(data: bytes, name: str, mode: int) -> NDArray[np.generic]:
    if what := unread_format(data):  # OpenCV gives black for blocks of a TIFF that it cannot decode
        raise BadPairError(f"{name}: is {what}, which is not read; save it as PNG")
    if is_damaged_tiff(data):
        raise BadPairError(f"{name}: is a damaged TIFF; fetch it again or remove the pair")
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


def _refuse_alpha(data: bytes, name: str) -> None:
    whole = _decoded(data, name, cv2.IMREAD_UNCHANGED)
    if whole.ndim == 3 and whole.shape[2] == 4 and np.ptp(np.asarray(whole[..., 3], np.int64)):
        raise BadPairError(f"{name}: its mask has the object in its transparency alone; store it as gray")


def _few_colors(stored: NDArray[np.generic]) -> NDArray[np.int64] | None:
    """The colors of a label map, as one number each; None of what is gray, soft, or one color on black."""
    planes = np.asarray(stored, np.int64)
    if np.ptp(planes, axis=2).max() <= _CHROMA_NOISE:
        return None
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


def _numbers(stored: NDArray[np.generic], data: bytes, name: str) -> NDArray[Any]:
    """What a label map stores: a palette's numbers rather than its colors."""
    indices = _palette_indices(data, name)
    values: NDArray[Any] = np.asarray(stored if indices is None else indices)
    return values[..., 0] if values.ndim == 3 and _is_gray(values) else values


def _palette_indices(data: bytes, name: str) -> UInt8 | None:
    """What a PNG or TIFF with a palette stores for each pixel; None of any other file, whose reader gives its values.

    OpenCV gives colors alone, and two numbers may have one color. The same file declared gray gives the numbers.
    """
    declared = palette_as_gray(data)
    if declared is None:
        return None
    content, bits = declared
    shades = np.asarray(_decoded(content, name, cv2.IMREAD_GRAYSCALE), np.uint16)
    return np.asarray(shades // (255 // ((1 << bits) - 1)), np.uint8)  # less than eight bits are spread to 0..255


def _from_labels(values: NDArray[Any], name: str) -> Truth:
    if values.ndim == 3:
        is_object: Bool = np.asarray(values.any(axis=2))
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
        ignored = np.asarray(values == (255 if values.max() <= 255 else 65535))
    return _truth(is_object, ignored, name)


def _from_trimap(values: NDArray[Any], name: str) -> Truth:
    found = set(np.unique(values).tolist())
    for is_object, is_background, is_unknown in _TRIMAPS:
        if values.ndim == 2 and found <= {*is_object, *is_background, *is_unknown}:
            return _truth(np.isin(values, is_object), np.isin(values, is_unknown), name)
    raise MaskValuesError(
        f"{name}: its mask holds {_some(np.unique(values))}, and trimaps 1, 2 and 3 (object, background, unknown) or "
        "255, 0 and 128; leave --mask-values out, or store it so"
    )


def _truth(is_object: Bool, ignored: Bool, name: str) -> Truth:
    if ignored.all():
        raise BadPairError(f"{name}: its mask leaves every pixel out; remove the pair", kind="ignored")
    is_object = is_object & ~ignored
    held: list[Held] = ["object"] if is_object.any() else []
    if not (is_object | ignored).all():
        held.append("background")
    return Truth(
        mask_HW=np.where(is_object, np.uint8(255), np.uint8(0)),
        ignored_HW=ignored if ignored.any() else None,
        holds=frozenset(held),
        odd=(*(() if "object" in held else ("empty",)), *(("left_out",) if ignored.any() else ())),
    )
