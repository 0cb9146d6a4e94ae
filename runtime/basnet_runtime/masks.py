"""A network's small map as an 8-bit mask of the picture's size, in strips so that memory follows the mask alone.

Legend: h, w the map's size; H, W the picture's.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from basnet_torch.arrays import Float32, UInt8

__all__ = ["edged_mask", "mask_from_map", "mask_rows", "row_strips"]

_STRIP_PIXELS = 4_000_000


def row_strips(height: int, width: int, pixels: int = _STRIP_PIXELS) -> list[slice]:
    """Rows of a picture in strips of about `pixels` pixels.

    >>> row_strips(5, 10, pixels=20)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    rows = max(1, pixels // max(1, width))
    return [slice(y, min(y + rows, height)) for y in range(0, height, rows)]


def mask_from_map(map_hw: Float32, height: int, width: int) -> UInt8:
    """Resize a map of values 0..1 to uint8 H,W in 0..255: bilinear with half-pixel centers, rounded to nearest.

    >>> mask_from_map(np.array([[0, 1]], np.float32), 1, 4).tolist()
    [[0, 64, 191, 255]]
    """
    map_hw = np.clip(map_hw, 0, 1)
    strips = row_strips(height, width)
    if len(strips) == 1:
        return _uint8(_resized(map_hw, height, width))
    out_HW = np.empty((height, width), np.uint8)
    for strip in strips:
        out_HW[strip] = mask_rows(map_hw, height, width, strip)
    return out_HW


def mask_rows(map_hw: Float32, height: int, width: int, rows: slice) -> UInt8:
    """Some rows of what `mask_from_map` makes.

    >>> mask_rows(np.array([[0], [1]], np.float32), 4, 1, slice(1, 3)).tolist()
    [[64], [191]]
    """
    map_hw = np.clip(map_hw, 0, 1)
    centers = (np.arange(rows.start, rows.stop) + 0.5) * (len(map_hw) / height) - 0.5
    centers = centers.clip(0, len(map_hw) - 1)
    # Bilinear is separable: rows first, at the map's width, then OpenCV stretches the strip across.
    low = np.floor(centers).astype(np.intp)
    high = np.minimum(low + 1, len(map_hw) - 1)
    weight = (centers - low).astype(np.float32)[:, None]
    lines = map_hw[low] + (map_hw[high] - map_hw[low]) * weight
    return _uint8(_resized(lines, len(lines), width))


def _resized(map_hw: Float32, height: int, width: int) -> Float32:
    import cv2

    resized = cv2.resize(map_hw, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def _uint8(mask: Float32) -> UInt8:
    """0..1 as 0..255, rounded to nearest."""
    import cv2

    return np.asarray(cv2.convertScaleAbs(mask, alpha=255.0), np.uint8)


def edged_mask(mask_HW: UInt8, *, threshold: float | None = None, feather: float = 0.0) -> UInt8:
    """A mask with harder or softer edges.

    Args:
        mask_HW: 0..255.
        threshold: Values of at least this share become 255, all others 0; None leaves them.
        feather: Standard deviation, in pixels, of the blur that follows; 0 does not blur.
    """
    import cv2

    if threshold is not None:
        mask_HW = np.where(mask_HW >= threshold * 255, np.uint8(255), np.uint8(0))
    if feather > 0:
        mask_HW = cast(UInt8, cv2.GaussianBlur(mask_HW, (0, 0), feather, borderType=cv2.BORDER_REPLICATE))
    return mask_HW
