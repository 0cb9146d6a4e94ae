"""Stabilizer: masks of a video that do not flicker, by motion compensation.

    stabilizer = Stabilizer()                      # one for each video
    map_hw = stabilizer(frame.image_HWC, map_hw)   # frames in order

Causal and without delay: a frame's mask depends on it and on those before. Where the motion does not explain the
picture (what was hidden comes into view, something moves too fast) the frame's own mask counts; a cut starts anew.

Legend: h, w the map's size; H, W the picture's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Float32, UInt8

__all__ = ["Stabilizer", "warped"]

_STRENGTH = 0.8  # share of the past where the motion explains the picture
_TOLERANCE = 0.06 * 255  # gray levels of unexplained change at which that share has fallen to 1/e
_WINDOW = 7  # pixels over which that change is averaged
_CUT = 0.35  # mean trust below which nothing of the past is kept


class Stabilizer:
    """Keeps the last map and picture of one video, both of the map's size."""

    def __init__(self, strength: float = _STRENGTH) -> None:
        """`strength`: 0..1, share of the past where the motion explains the picture."""
        import cv2

        self._strength = strength
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._last: tuple[UInt8, Float32] | None = None

    def __call__(self, image_HWC: UInt8, map_hw: Float32) -> Float32:
        """The stable map h,w of the next frame, from its picture and its own map."""
        gray_hw = _gray(image_HWC, *map_hw.shape)
        if self._last is not None and self._last[0].shape == gray_hw.shape and min(gray_hw.shape) >= _WINDOW:
            map_hw = self._mixed(gray_hw, map_hw, *self._last)
        self._last = gray_hw, map_hw
        return map_hw

    @property
    def memory(self) -> dict[str, NDArray[Any]]:
        """What the next frame's map depends on."""
        return {} if self._last is None else {"last_gray": self._last[0], "last_map": self._last[1]}

    def recall(self, memory: dict[str, NDArray[Any]]) -> None:
        """Continue from the `memory` of another stabilizer; an empty one is a beginning."""
        self._last = (memory["last_gray"], memory["last_map"]) if "last_gray" in memory else None

    def _mixed(self, gray_hw: UInt8, map_hw: Float32, last_gray_hw: UInt8, last_map_hw: Float32) -> Float32:
        import cv2

        flow = self._flow.calc(gray_hw, last_gray_hw, None)
        change = cv2.absdiff(warped(last_gray_hw, flow), gray_hw).astype(np.float32)
        trust = np.exp(-np.square(cv2.blur(change, (_WINDOW, _WINDOW)) / _TOLERANCE))
        if trust.mean() < _CUT:
            return map_hw
        mixed: Float32 = map_hw + np.float32(self._strength) * trust * (warped(last_map_hw, flow) - map_hw)
        return mixed


def warped(last_hw: NDArray[Any], flow_hw2: Float32) -> NDArray[Any]:
    """Warp the last picture or map; `flow_hw2`: each pixel's place in it, x and y."""
    import cv2

    height, width = flow_hw2.shape[:2]
    x = flow_hw2[..., 0] + np.arange(width, dtype=np.float32)
    y = flow_hw2[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    moved = cv2.remap(last_hw, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved)


def _gray(image_HWC: UInt8, height: int, width: int) -> UInt8:
    import cv2

    small = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
