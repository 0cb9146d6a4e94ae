"""Resampling for compositing: shrink to a long side, enlarge rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Float32, UInt8

__all__ = ["enlarged_rows", "shrunk"]


def shrunk(side: int, *images: UInt8) -> list[Float32]:
    """Shrink pictures of one size to a long side of at most `side`, area by area.

    >>> [values.shape for values in shrunk(4, np.zeros((3, 8, 3), np.uint8), np.zeros((3, 8), np.uint8))]
    [(2, 4, 3), (2, 4)]
    """
    import cv2

    height, width = images[0].shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32) for image in images]


def enlarged_rows(
    values: NDArray[Any], height: int, width: int, *, at: tuple[float, float], step: tuple[float, float]
) -> NDArray[Any]:
    """Sample rows of an enlarged picture, bilinear.

    Not for masks (see `mask_rows`): OpenCV rounds places to 1/32 pixel.

    Args:
        values: h,w or h,w,C.
        height: Rows to make.
        width: Columns to make.
        at: Row and column of `values` where the first of them lies.
        step: Rows and columns of `values` from one to the next.
    """
    import cv2

    matrix = np.array([[step[1], 0, at[1]], [0, step[0], at[0]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(values, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))
