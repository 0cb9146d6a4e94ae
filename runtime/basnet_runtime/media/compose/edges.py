"""Mask edge refinement by a guided filter (He, Sun and Tang 2010).

    mask_HW = refined_edges(image_HWC, mask_HW)

In a window the mask is taken for a linear function of the picture's three colors. Its coefficients are found on a
reduced picture, as in the fast guided filter (He and Sun 2015), and applied to the full one strip by strip. How much of
the mask's spread the colors explain decides how far the result is taken; elsewhere the mask stays as it is, because
the plain filter made good masks worse.

The filter draws every value toward its window's mean: alone it raises the mean error where it finds better edges. So
its result is made steeper around the middle, and no pixel becomes less certain of the side that it stays on: inside and
outside keep their values.

Legend: H, W the picture's size; h, w that of the reduced one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from basnet_runtime.media.compose.scaling import enlarged_rows, shrunk
from basnet_runtime.postprocess import row_strips
from basnet_torch.arrays import Float32, Float64, UInt8

__all__ = ["refined_edges"]

_SIDE = 400  # pixels of the reduced picture's long side
_RADIUS = 0.03  # of that side
_SMOOTH = 1e-4  # variance of color, 0..1 squared, below which a window counts as flat
_POWER = 2  # how sharply trust falls with the share that the colors explain
_CONTRAST = 1.5  # of the filter's result around the middle; it comes out flatter than the mask
_SPREAD = 1e-3  # variance of the mask below which there is no edge to move
_TRUSTED = 1 / 512  # below it no value of the mask changes
_STRIP_PIXELS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """Of each reduced pixel: mask = gain . color + offset, and how far that is trusted, 0..1."""

    gain_hw3: Float32
    offset_hw: Float32
    trust_hw: Float32


def refined_edges(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    """The mask, uint8 0..255, with edges that follow those of the picture."""
    height, width = mask_HW.shape
    picture, mask = (values / np.float32(255) for values in shrunk(_SIDE, image_HWC, mask_HW))
    model = _fitted(picture, mask, max(1, round(_RADIUS * max(mask.shape))))
    refined_HW = np.empty_like(mask_HW)
    for rows in row_strips(height, width, pixels=_STRIP_PIXELS):
        refined_HW[rows] = _applied(model, image_HWC[rows], mask_HW[rows], rows, height)
    return refined_HW


def _fitted(picture: Float32, mask: Float32, radius: int) -> _Model:
    mean, mask_mean = _blur(picture, radius), _blur(mask, radius)
    shared = _blur(picture * mask[..., None], radius) - mean * mask_mean[..., None]
    gain = _solved(_covariance(picture, mean, radius), shared)
    offset = mask_mean - (gain * mean).sum(axis=2)
    gain, offset = _blur(gain, radius), _blur(offset, radius)
    spread = _blur(mask * mask, radius) - mask_mean * mask_mean
    unexplained = _blur(np.square((gain * picture).sum(axis=2) + offset - mask), radius)
    explained = (1 - unexplained / (spread + np.float32(_SPREAD))).clip(0, 1)
    return _Model(gain_hw3=gain, offset_hw=offset, trust_hw=explained**_POWER)


def _covariance(picture: Float32, mean: Float32, radius: int) -> dict[tuple[int, int], Float64]:
    """Of channels i and j in each window, in double precision because flat windows are nearly singular."""
    found: dict[tuple[int, int], Float64] = {}
    for i in range(3):
        for j in range(i, 3):
            product = _blur(picture[..., i] * picture[..., j], radius) - mean[..., i] * mean[..., j]
            found[i, j] = found[j, i] = product.astype(np.float64) + (_SMOOTH if i == j else 0)
    return found


def _solved(matrix: dict[tuple[int, int], Float64], right_hw3: Float32) -> Float32:
    """The three unknowns of each pixel, by Cramer's rule: ten times as fast as a solver called for each."""

    def cofactor(i: int, j: int) -> Float64:
        (a, b), (c, d) = ([k for k in range(3) if k != without] for without in (i, j))
        sign = -1 if (i + j) % 2 else 1
        return sign * (matrix[a, c] * matrix[b, d] - matrix[a, d] * matrix[b, c])

    adjoint = {(i, j): cofactor(i, j) for i in range(3) for j in range(i, 3)}
    determinant = sum(matrix[0, j] * adjoint[0, j] for j in range(3))
    unknowns = [
        sum(adjoint[min(i, j), max(i, j)] * right_hw3[..., j] for j in range(3)) / determinant for i in range(3)
    ]
    return np.stack(unknowns, axis=2).astype(np.float32)


def _applied(model: _Model, image_HWC: UInt8, mask_HW: UInt8, rows: slice, height: int) -> UInt8:
    """Rows of the refined mask."""
    width = mask_HW.shape[1]
    down, across = model.trust_hw.shape[0] / height, model.trust_hw.shape[1] / width
    at = (rows.start + 0.5) * down - 0.5, across / 2 - 0.5  # half-pixel centers
    gain, offset, trust = (
        enlarged_rows(values, len(mask_HW), width, at=at, step=(down, across))
        for values in (model.gain_hw3, model.offset_hw, model.trust_hw)
    )
    refined_HW = mask_HW.copy()
    moves = trust > _TRUSTED  # the edges alone: elsewhere there is nothing to compute
    mask = mask_HW[moves].astype(np.float32)
    middle = np.float32(127.5)
    guided = (gain[moves] * image_HWC[moves]).sum(axis=1) + offset[moves] * np.float32(255)
    guided = (middle + np.float32(_CONTRAST) * (guided - middle)).clip(0, 255)
    moved = np.rint(mask + trust[moves] * (guided - mask))
    stays = (moved > middle) == (mask > middle)
    fades = np.abs(moved - middle) < np.abs(mask - middle)
    refined_HW[moves] = np.where(stays & fades, mask, moved)
    return refined_HW


def _blur(values: Float32, radius: int) -> Float32:
    import cv2

    side = 2 * radius + 1
    return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)
