"""Foreground color estimation at soft edges (color decontamination).

Foreground and background are estimated together by the multi-level method (Germer et al. 2020, arXiv 2006.14970): from
one pixel up to a reduced picture, each level starts from the one below and is solved a few times pixel by pixel. What
the reduced estimate misses of the full picture is put back where the mask is soft, as in the last step of "blur fusion"
(Forte 2021), so that the cost hardly grows with the picture.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.media.compose.scaling import shrunk
from basnet_runtime.postprocess import row_strips
from basnet_torch.arrays import Float32, UInt8

__all__ = ["Foreground"]

_LONG_SIDE = 256
_SMOOTH = 1e-5  # pull towards the neighbors everywhere; where the mask changes, its change is added
_SURE = 0.9  # share from which a pixel counts for the mean that the first level starts from
_SMALL = 32  # pixels: up to that size a level costs nothing
_ROUNDS = 10, 8  # at small levels and at large ones
_SOFT = (3, 252)  # below and above, what shows through is under one part in eighty
_STRIP_PIXELS = 1 << 18  # a mask may be soft everywhere, and each soft pixel needs some 100 bytes


class Foreground:
    """Foreground colors of one picture and mask."""

    def __init__(self, image_HWC: UInt8, mask_HW: UInt8, size: tuple[int, int] | None = None) -> None:
        """Estimate on a reduced copy, at the same cost however large the picture is.

        Args:
            image_HWC: The picture, or a smaller copy of it.
            mask_HW: Its mask, of the same size.
            size: Height and width of the picture that `clean` is given, where that is another.
        """
        self._height, self._width = size or mask_HW.shape
        image, alpha = shrunk(_LONG_SIDE, image_HWC, mask_HW)
        self._front, self._back = _estimated(image, alpha / np.float32(255))

    def clean(self, image_HWC: UInt8, mask_HW: UInt8, top: int = 0) -> None:
        """Replace colors under the soft mask in place; `top`: the first row's number."""
        height, width = mask_HW.shape
        for rows in row_strips(height, width, _STRIP_PIXELS):
            y, x = np.nonzero((mask_HW[rows] > _SOFT[0]) & (mask_HW[rows] < _SOFT[1]))
            if len(y):
                y += rows.start
                image_HWC[y, x] = self._colors(image_HWC[y, x], mask_HW[y, x], y + top, x)

    def _colors(self, pixels_P3: UInt8, mask_P: UInt8, y: NDArray[np.intp], x: NDArray[np.intp]) -> UInt8:
        """Of P soft pixels at rows `y`, columns `x`: F + alpha * (I - alpha F - (1 - alpha) B)."""
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


def _estimated(image_hwC: Float32, alpha_hw: Float32) -> tuple[Float32, Float32]:
    """Foreground and background h,w,3 that explain the picture and change where the mask does."""
    import cv2

    levels = max(1, math.ceil(math.log2(max(alpha_hw.shape))))
    # The first level starts from the mean color where the share is sure, of the whole picture where it is nowhere.
    sure = (image_hwC[share > _SURE] for share in (alpha_hw, 1 - alpha_hw))
    means = [colors.mean(axis=0) if len(colors) else image_hwC.mean(axis=(0, 1)) for colors in sure]
    pair = np.stack(means)[..., None, None]
    for level in range(levels + 1):
        height, width = (max(1, round(side ** (level / levels))) for side in alpha_hw.shape)
        image = cv2.resize(image_hwC, (width, height), interpolation=cv2.INTER_AREA)
        alpha = np.asarray(cv2.resize(alpha_hw, (width, height), interpolation=cv2.INTER_AREA), np.float32)
        image_Chw = np.ascontiguousarray(np.moveaxis(image, 2, 0), np.float32)
        rounds = _ROUNDS[max(height, width) > _SMALL]
        rows = np.arange(height) * pair.shape[2] // height  # the level below at this size, nearest
        columns = np.arange(width) * pair.shape[3] // width
        pair = _solved(image_Chw, alpha, pair[..., rows[:, None], columns], rounds)
    front, back = np.ascontiguousarray(np.moveaxis(pair, 1, 3))
    return front, back


def _solved(image_Chw: Float32, alpha_hw: Float32, pair_2Chw: Float32, rounds: int) -> Float32:
    """Each pixel's best foreground and background, its neighbors held; all pixels at once, `rounds` times.

    The pixel's own equations, two unknowns a channel, have a closed form: the neighbors' weighted means, moved along
    the mask's share by what they leave unexplained.
    """
    weights = [np.float32(_SMOOTH) + np.abs(alpha_hw - beside) for beside in _beside(alpha_hw)]
    total = sum(weights[1:], weights[0])
    parts = [weight / total for weight in weights]
    share = np.stack([alpha_hw, 1 - alpha_hw])[:, None]
    gain = share / (total + np.square(share).sum(axis=0))
    for _ in range(rounds):
        means = [part * beside for part, beside in zip(parts, _beside(pair_2Chw), strict=True)]
        mean = sum(means[1:], means[0])
        rest = image_Chw - (share * mean).sum(axis=0)
        pair_2Chw = np.clip(mean + gain * rest, 0, 255)
    return pair_2Chw


def _beside(values: Float32) -> tuple[Float32, Float32, Float32, Float32]:
    """The neighbors above, below, left and right of each pixel; beyond the border the pixel itself."""
    wide = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    return wide[..., :-2, 1:-1], wide[..., 2:, 1:-1], wide[..., 1:-1, :-2], wide[..., 1:-1, 2:]
