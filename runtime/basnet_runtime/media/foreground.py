"""The object's own colour at soft edges, so that a cut-out carries no rim of its old background.

"Blur fusion" (Forte 2021, arXiv 2006.14970, eq. 4 and 5, twice with a wide and a narrow radius), computed on a reduced
picture because the estimate is smooth, and applied only where the mask is soft.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.masks import row_strips
from basnet_runtime.media.frame import UInt8

__all__ = ["Foreground"]

Float32 = NDArray[np.float32]
_LONG_SIDE = 320
_RADII = (56, 4)  # of a picture reduced to 320 pixels: first across the object, then along the edge
_SOFT = (3, 252)  # below and above, what shows through is under one part in eighty
_TINY = 1e-5
_STRIP_PIXELS = 1 << 18  # a mask may be soft everywhere, and each soft pixel needs some 100 bytes


class Foreground:
    """Foreground colours of one picture and mask; `clean` puts them into the picture, strip by strip."""

    def __init__(self, image_HWC: UInt8, mask_HW: UInt8, size: tuple[int, int] | None = None) -> None:
        """Estimate on a reduced copy, at the same cost however large the picture is.

        Args:
            image_HWC: The picture, or a smaller copy of it.
            mask_HW: Its mask, of the same size.
            size: Height and width of the picture that `clean` is given, where that is another.
        """
        import cv2

        self._height, self._width = size or mask_HW.shape
        height, width = mask_HW.shape
        scale = min(1.0, _LONG_SIDE / max(height, width))
        small = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image_HWC, small, interpolation=cv2.INTER_AREA).astype(np.float32)
        alpha = cv2.resize(mask_HW, small, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / np.float32(255)
        front, back = image, image
        for radius in _RADII:
            front, back = _fuse(image, front, back, alpha, radius)
        self._front, self._back = front, back

    def clean(self, image_HWC: UInt8, mask_HW: UInt8, top: int = 0) -> None:
        """Replace, in place, the colours under the soft part of the mask; `top`: the picture's row that is first."""
        height, width = mask_HW.shape
        for rows in row_strips(height, width, _STRIP_PIXELS):
            y, x = np.nonzero((mask_HW[rows] > _SOFT[0]) & (mask_HW[rows] < _SOFT[1]))
            if len(y):
                y += rows.start
                image_HWC[y, x] = self._colours(image_HWC[y, x], mask_HW[y, x], y + top, x)

    def _colours(self, pixels_P3: UInt8, mask_P: UInt8, y: NDArray[np.intp], x: NDArray[np.intp]) -> UInt8:
        """Of P soft pixels at rows `y`, columns `x`: F + alpha * (I - alpha F - (1 - alpha) B), eq. 4."""
        alpha = mask_P.astype(np.float32)[:, None] / np.float32(255)
        front, back = self._sample(self._front, y, x), self._sample(self._back, y, x)
        rest = pixels_P3 - alpha * front - (1 - alpha) * back
        cleaned: UInt8 = np.rint(front + alpha * rest).clip(0, 255).astype(np.uint8)
        return cleaned

    def _sample(self, small_hwC: Float32, y: NDArray[np.intp], x: NDArray[np.intp]) -> Float32:
        """The reduced picture at full-size positions, nearest: it is smooth already."""
        rows = y * small_hwC.shape[0] // self._height
        columns = x * small_hwC.shape[1] // self._width
        sampled: Float32 = small_hwC[rows, columns]
        return sampled


def _fuse(image: Float32, front: Float32, back: Float32, alpha: Float32, radius: int) -> tuple[Float32, Float32]:
    """One pass: blur front and back, each weighted by its share, then correct the front by what is left over."""
    share = _blur(alpha, radius)[..., None]
    blurred_front = _blur(front * alpha, radius) / (share + np.float32(_TINY))
    blurred_back = _blur(back * (1 - alpha), radius) / (1 - share + np.float32(_TINY))
    rest = image - alpha * blurred_front - (1 - alpha) * blurred_back
    corrected: Float32 = (blurred_front + alpha * rest).clip(0, 255)
    return corrected, blurred_back


def _blur(values: Float32, radius: int) -> Float32:
    import cv2

    return np.asarray(cv2.blur(values, (radius, radius)), np.float32)
