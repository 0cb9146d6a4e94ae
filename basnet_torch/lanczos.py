"""Resizing with a Lanczos window of three lobes that widens where a picture shrinks, as Pillow does it.

Legend: H, W the picture's height and width; h, w the target's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from basnet_torch.arrays import Float32, UInt8

__all__ = ["resize_lanczos"]

_LOBES = 3
_BLOCK = 16  # target pixels whose source pixels are multiplied at once: more would mostly multiply by zero
_STRIP_PIXELS = 1_000_000  # converted to floats at once, so that memory does not follow the picture


@dataclass(frozen=True, slots=True)
class _Block:
    """Weights of some neighboring target pixels over the source pixels that they read."""

    target: slice
    source: slice
    weights: Float32


def resize_lanczos(image_HWC: UInt8, height: int, width: int) -> Float32:
    """Resize H,W,C bytes to float32 h,w,C of whole numbers 0..255.

    Rows first, then columns, each rounded to bytes: the values are Pillow's `LANCZOS` to within 1 of 255.

    >>> resize_lanczos(np.full((5, 9, 3), 7, np.uint8), 2, 2)[0, 0].tolist()
    [7.0, 7.0, 7.0]
    """
    rows, columns, channels = image_HWC.shape
    across = np.empty((rows, width, channels), np.uint8)
    strip = max(1, _STRIP_PIXELS // columns)
    for top in range(0, rows, strip):
        band_hWC = image_HWC[top : top + strip].astype(np.float32)
        if width == columns:
            across[top : top + strip] = band_hWC
            continue
        for block in _blocks(columns, width):
            across[top : top + strip, block.target] = _bytes(np.matmul(block.weights, band_hWC[:, block.source]))
    if height == rows:
        return across.astype(np.float32)
    out_HWC = np.empty((height, width, channels), np.float32)
    for block in _blocks(rows, height):
        read = across[block.source].reshape(-1, width * channels).astype(np.float32)
        out_HWC[block.target] = _bytes(block.weights @ read).reshape(-1, width, channels)
    return out_HWC


def _bytes(values: Float32) -> Float32:
    """Round halves up and clip to 0..255."""
    np.add(values, np.float32(0.5), out=values)
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)


@lru_cache(maxsize=64)
def _blocks(source: int, target: int) -> tuple[_Block, ...]:
    """Weights that sum to 1 for each target pixel; those beyond the edge are left out, as Pillow does."""
    scale = source / target
    stretch = max(scale, 1.0)
    found = []
    for first in range(0, target, _BLOCK):
        centers = (np.arange(first, min(first + _BLOCK, target)) + 0.5) * scale
        low = max(0, int(np.floor(centers[0] - _LOBES * stretch)))
        high = min(source, int(np.ceil(centers[-1] + _LOBES * stretch)))
        places = (np.arange(low, high) + 0.5 - centers[:, None]) / stretch
        weights = np.where(np.abs(places) < _LOBES, np.sinc(places) * np.sinc(places / _LOBES), 0)
        weights /= weights.sum(axis=1, keepdims=True)
        found.append(_Block(slice(first, first + len(centers)), slice(low, high), weights.astype(np.float32)))
    return tuple(found)
