"""Compositing: mask, cut-out, overlay, side by side, new background.

    kind = OutputKind.parse("color:#20c060")
    composed = Composer(kind)(frame, mask_HW)

Everything works in strips of rows and may reuse the frame's own memory, so that a huge picture needs no second copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.kinds import KindName, OutputKind
from basnet_runtime.media.compose.edges import refined_edges
from basnet_runtime.media.compose.foreground import Foreground
from basnet_runtime.media.compose.scaling import enlarged_rows, shrunk
from basnet_runtime.postprocess import edged_mask, mask_from_map, mask_rows, row_strips
from basnet_runtime.salience import GIVEN, SalienceDecision
from basnet_torch.arrays import Float32, UInt8

__all__ = ["Composer", "StripComposer"]

_TINT = (255, 40, 90)
_TINT_SHARE = 0.55
_BLUR_SIDE = 240
_BLUR_SIGMA = 6.0
_BACKGROUND_MAX = 100_000_000
_CACHED_PIXELS = 16_000_000
_Layers: TypeAlias = "tuple[Foreground, _Background | None]"


class Composer:
    """Make one kind of result; the background picture is read once, when created."""

    def __init__(
        self, kind: OutputKind, *, threshold: float | None = None, feather: float = 0.0, refine_edges: bool = False
    ) -> None:
        """Get ready.

        Args:
            kind: What to make.
            threshold: Share from which a mask's value counts as foreground; None keeps soft masks.
            feather: Blur of the mask's edge, pixels.
            refine_edges: Lay the mask's edges onto the picture's first.

        Raises:
            MediaError: The background picture cannot be read.
        """
        self.kind = kind
        self._threshold, self._feather, self._refine_edges = threshold, feather, refine_edges
        self._picture: UInt8 | None = None
        if kind.image is not None:
            from basnet_runtime.media.image.pictures import read_picture

            self._picture = read_picture(kind.image, max_pixels=_BACKGROUND_MAX).flattened()
        self._cached: tuple[tuple[int, int], UInt8] | None = None

    def __call__(self, frame: Frame, mask_HW: UInt8, decision: SalienceDecision = GIVEN) -> ResultFrame:
        """Compose one frame; `frame.image_HWC` is overwritten by every kind but `mask`."""
        if self._refine_edges:
            mask_HW = refined_edges(frame.image_HWC, mask_HW)
        mask_HW = edged_mask(mask_HW, threshold=self._threshold, feather=self._feather)
        if self.kind.name == "mask":
            return ResultFrame(pixels=mask_HW, frame=frame, decision=decision)
        pixels, alpha_HW = _composed(self.kind.name, frame, mask_HW, self._layers)
        return ResultFrame(pixels=pixels, frame=frame, alpha_HW=alpha_HW, decision=decision)

    def in_strips(self, reduced: Frame, map_hw: Float32, height: int, width: int) -> StripComposer:
        """Compose a picture of `height` x `width` that is never in memory as a whole."""
        if self._refine_edges:
            small_HW = mask_from_map(map_hw, *reduced.image_HWC.shape[:2])
            map_hw = refined_edges(reduced.image_HWC, small_HW).astype(np.float32) / np.float32(255)
        edges = _Edges(threshold=self._threshold, feather=self._feather, map_hw=map_hw, height=height, width=width)
        mask_HW = edges.reduced_mask(*reduced.image_HWC.shape[:2])
        if reduced.alpha_HW is not None:
            mask_HW = _product(mask_HW, reduced.alpha_HW)
        layered = self.kind.name not in ("mask", "side", "overlay")
        layers = self._layers(reduced.image_HWC, mask_HW, (height, width)) if layered else None
        return StripComposer(name=self.kind.name, edges=edges, layers=layers)

    def _layers(self, image_HWC: UInt8, mask_HW: UInt8, size: tuple[int, int] | None = None) -> _Layers:
        """Estimate what lies over and under the mask; `size`: of the picture of which this is a smaller copy."""
        height, width = size = size or (mask_HW.shape[0], mask_HW.shape[1])
        foreground = Foreground(image_HWC, mask_HW, size)
        if self.kind.has_alpha:
            return foreground, None
        if self.kind.name == "color":
            return foreground, _Background(np.full((1, 1, 3), self.kind.color, np.uint8), height, width)
        if self._picture is None:
            return foreground, _Background(_blurred_surroundings(image_HWC, mask_HW), height, width)
        # Shrunk where it is larger than the frame, and kept for the next frame of the same size.
        if self._cached is None or self._cached[0] != size:
            self._cached = size, _shrunk_to_cover(self._picture, height, width)
        return foreground, _Background(self._cached[1], height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Edges:
    """A mask in strips: the network's map, scaled to height x width, with its edges made harder or softer."""

    threshold: float | None
    feather: float
    map_hw: Float32
    height: int
    width: int

    def mask(self, rows: slice) -> UInt8:
        """Some rows; those around them that blur into them are looked at too."""
        margin = math.ceil(4 * self.feather)
        wide = slice(max(0, rows.start - margin), min(self.height, rows.stop + margin))
        mask_HW = mask_rows(self.map_hw, self.height, self.width, wide)
        mask_HW = edged_mask(mask_HW, threshold=self.threshold, feather=self.feather)
        return mask_HW[rows.start - wide.start : rows.stop - wide.start]

    def reduced_mask(self, height: int, width: int) -> UInt8:
        """All of it, smaller."""
        mask_HW = mask_from_map(self.map_hw, height, width)
        return edged_mask(mask_HW, threshold=self.threshold, feather=self.feather * height / self.height)


@dataclass(frozen=True, kw_only=True, slots=True)
class StripComposer:
    """`Composer` for strips of rows; a reduced copy stands for the whole picture."""

    name: KindName
    edges: _Edges
    layers: _Layers | None

    def __call__(self, rows: slice, frame: Frame | None) -> UInt8:
        """Compose rows h,W or h,W,3 or, with transparency, h,W,4.

        `frame` is the picture's same rows.
        """
        mask_HW = self.edges.mask(rows)
        if frame is None:
            return mask_HW
        pixels, alpha_HW = _composed(self.name, frame, mask_HW, lambda *_: self.layers, top=rows.start)
        return pixels if alpha_HW is None else np.dstack([pixels, alpha_HW])


def _composed(
    name: KindName, frame: Frame, mask_HW: UInt8, layers: Callable[[UInt8, UInt8], _Layers | None], *, top: int = 0
) -> tuple[UInt8, UInt8 | None]:
    """Rows of the result from the picture's row `top` on, and the transparency of a cutout."""
    if name == "side":
        return _side_by_side(frame.flattened(), mask_HW), None
    if name == "overlay":
        image_HWC = _writable(frame.flattened())
        tint = np.array(_TINT, np.uint8)
        for rows in row_strips(*mask_HW.shape):
            share = mask_HW[rows].astype(np.float32) * np.float32(_TINT_SHARE / 255)
            image_HWC[rows] = _mix(np.broadcast_to(tint, image_HWC[rows].shape).copy(), image_HWC[rows], share)
        return image_HWC, None
    image_HWC = _writable(frame.image_HWC)
    if frame.alpha_HW is not None:
        mask_HW = _product(mask_HW, frame.alpha_HW)
    foreground, background = cast("_Layers", layers(image_HWC, mask_HW))
    foreground.clean(image_HWC, mask_HW, top)
    for rows in row_strips(*mask_HW.shape):
        if background is None:  # black where nothing is left: smaller files, and what is hidden does not travel along
            image_HWC[rows][mask_HW[rows] == 0] = 0
        else:
            share = mask_HW[rows].astype(np.float32) * np.float32(1 / 255)
            image_HWC[rows] = _mix(image_HWC[rows], background.strip(rows.start + top, rows.stop + top), share)
    return image_HWC, mask_HW if background is None else None


class _Background:
    """A picture scaled to cover height x width, centered, delivered in strips of rows."""

    def __init__(self, picture_HWC: UInt8, height: int, width: int) -> None:
        self._picture = picture_HWC
        self._size = height, width
        self._whole = self._scaled(0, height) if height * width <= _CACHED_PIXELS else None

    def strip(self, start: int, stop: int) -> UInt8:
        """Rows of the scaled background, h,W,3."""
        return self._scaled(start, stop) if self._whole is None else self._whole[start:stop]

    def _scaled(self, start: int, stop: int) -> UInt8:
        (height, width), picture = self._size, self._picture
        if picture.shape[:2] == (1, 1):
            return np.broadcast_to(picture, (stop - start, width, 3)).copy()
        if picture.shape[:2] == (height, width):
            return picture[start:stop]
        scale = max(height / picture.shape[0], width / picture.shape[1])
        # Pixel centers: source = (target + 0.5 - middle) / scale + source middle - 0.5.
        left = (0.5 - width / 2) / scale + picture.shape[1] / 2 - 0.5
        top = (start + 0.5 - height / 2) / scale + picture.shape[0] / 2 - 0.5
        return enlarged_rows(picture, stop - start, width, at=(top, left), step=(1 / scale, 1 / scale))


def _shrunk_to_cover(picture_HWC: UInt8, height: int, width: int) -> UInt8:
    import cv2

    scale = max(height / picture_HWC.shape[0], width / picture_HWC.shape[1])
    if scale >= 1:
        return picture_HWC
    size = max(width, round(picture_HWC.shape[1] * scale)), max(height, round(picture_HWC.shape[0] * scale))
    shrunk = np.asarray(cv2.resize(picture_HWC, size, interpolation=cv2.INTER_AREA), np.uint8)
    top, left = (shrunk.shape[0] - height) // 2, (shrunk.shape[1] - width) // 2
    return np.ascontiguousarray(shrunk[top : top + height, left : left + width])


def _blurred_surroundings(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    """What surrounds the object, blurred without the object's colors leaking into it; reduced to 240 pixels."""
    import cv2

    image, mask = shrunk(_BLUR_SIDE, image_HWC, mask_HW)
    weight = (np.float32(256) - mask)[..., None] / np.float32(256)  # never 0: a full mask blurs what there is
    sigma = max(0.5, _BLUR_SIGMA * max(mask.shape) / _BLUR_SIDE)
    colors = cv2.GaussianBlur(image * weight, (0, 0), sigma).reshape(image.shape)
    shares = cv2.GaussianBlur(weight, (0, 0), sigma).reshape(weight.shape)
    blurred: UInt8 = np.rint(colors / shares).clip(0, 255).astype(np.uint8)
    return blurred


def _writable(image_HWC: UInt8) -> UInt8:
    return image_HWC if image_HWC.flags.writeable and image_HWC.flags.c_contiguous else image_HWC.copy()


def _side_by_side(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    """The picture on the left and its mask on the right, H,2W,3."""
    height, width = mask_HW.shape
    both_HWC = np.empty((height, 2 * width, 3), np.uint8)
    both_HWC[:, :width] = image_HWC
    both_HWC[:, width:] = mask_HW[..., None]
    return both_HWC


def _mix(front_HWC: UInt8, back_HWC: UInt8, share_HW: Float32) -> UInt8:
    """`share` of the front and the rest of the back, rounded."""
    import cv2

    return np.asarray(cv2.blendLinear(front_HWC, back_HWC, share_HW, np.float32(1) - share_HW), np.uint8)


def _product(mask_HW: UInt8, alpha_HW: UInt8) -> UInt8:
    """Both transparencies together, rounded."""
    import cv2

    return np.asarray(cv2.multiply(mask_HW, alpha_HW, scale=1 / 255), np.uint8)
