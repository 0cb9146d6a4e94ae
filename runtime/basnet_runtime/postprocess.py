"""Postprocessing: from the raw map to a mask of picture size and its decision.

    postprocess = model.postprocessor(stream=True)     # one for each video, one for all pictures of a run
    mask_HW, decision = postprocess(frame, raw_map)

Large masks are enlarged in strips, so that memory follows the mask alone.

Legend: h, w the map's size; H, W the picture's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.salience import SalienceDecision, SalienceThreshold
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.errors import ModelFileError
from basnet_torch.spec import Postprocess, Preprocess, resize_bilinear

if TYPE_CHECKING:
    from basnet_runtime.frame import Frame
    from basnet_runtime.temporal import Stabilizer

__all__ = ["Postprocessor", "edged_mask", "float_mask", "mask_from_map", "mask_rows", "row_strips"]

_STRIP_PIXELS = 4_000_000


class Postprocessor:
    """Makes masks from the maps of one model, one after the other."""

    def __init__(
        self,
        preprocess: Preprocess,
        postprocess: Postprocess,
        *,
        takes_frames: bool,
        name: str,
        stabilize: bool = False,
        empty_weak: bool = False,
        stream: bool = False,
    ) -> None:
        """Get ready.

        Args:
            preprocess: Of the model; its size is that of the stabilizer's maps.
            postprocess: Of the model.
            takes_frames: Whether the model runs the `frame` graph, which gives finished bytes.
            name: Of the model, for errors.
            stabilize: Keep the masks of a stream from flickering.
            empty_weak: Give an empty mask where nothing salient was found, instead of the map as it is.
            stream: Whether the maps that come are those of one video, in order.
        """
        self._preprocess = preprocess
        self._postprocess = postprocess
        self._takes_frames = takes_frames
        self._name = name
        self._empty_weak = empty_weak
        self._stabilizer = _stabilizer() if stream and stabilize else None
        self._salience = SalienceThreshold(postprocess.empty_below, stream=stream)

    def __call__(self, frame: Frame, raw: NDArray[Any]) -> tuple[UInt8, SalienceDecision]:
        """The mask, uint8 H,W, and the decision; arguments and errors as of `decide`."""
        map_hw, decision = self.decide(raw, frame.image_HWC)
        return mask_from_map(map_hw, *frame.image_HWC.shape[:2]), decision

    def decide(self, raw: NDArray[Any], image_HWC: UInt8 | None = None) -> tuple[NDArray[Any], SalienceDecision]:
        """The map before it is enlarged, and the decision.

        Args:
            raw: A picture's part of what the backend gave: float32 1,h,w, of some adopted networks h,w, or uint8 H,W
                from the `frame` graph.
            image_HWC: The picture, which only a stabilizer needs.

        Returns:
            float32 h,w in 0..1, or uint8 H,W from the `frame` graph where nothing is stabilized.

        Raises:
            ModelFileError: The map holds values that are not finite.
        """
        # Of bytes it cannot be told: what was not finite inside the `frame` graph is lost in its cast.
        if not self._takes_frames and not np.isfinite(raw).all():  # a black mask would look like "nothing found"
            raise ModelFileError(f"{self._name}: gave values that are not finite; run it in fp32 or export again")
        map_hw = np.asarray(raw, np.uint8) if self._takes_frames else np.asarray(_plane(raw), np.float32)
        if self._stabilizer is not None and image_HWC is not None:
            # Before any stretching, which moves with each frame's own range; bytes come back to the map's size first.
            map_hw = self._stabilizer(image_HWC, self._small(map_hw))
        decision = self._salience(map_hw)
        if self._empty_weak and not decision.salient:
            return np.zeros_like(map_hw), decision
        return self._stretched(map_hw), decision

    def undecided(self, raw: NDArray[Any], height: int, width: int) -> Float32:
        """Return the mask float32 H,W before the decision; what is not finite stays so."""
        return float_mask(self._stretched(raw if self._takes_frames else _plane(raw)), height, width)

    def _stretched(self, map_hw: NDArray[Any]) -> NDArray[Any]:
        return map_hw if self._takes_frames else self._postprocess.stretched(map_hw)  # that graph stretches inside

    def _small(self, map_HW: NDArray[Any]) -> Float32:
        """A map of the network's size, float32 0..1."""
        import cv2

        if map_HW.dtype != np.uint8:
            return cast(Float32, map_HW)
        size = self._preprocess.width, self._preprocess.height
        return np.asarray(cv2.resize(map_HW, size, interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)

    @property
    def memory(self) -> dict[str, NDArray[Any]]:
        """State that the next frame's mask depends on, arrays by name.

        A video in segments continues from it.
        """
        stable = {} if self._stabilizer is None else self._stabilizer.memory
        return {**self._salience.memory, **stable}

    def recall(self, memory: dict[str, NDArray[Any]]) -> None:
        """Continue from the `memory` of another postprocessor; an empty one is a beginning."""
        self._salience.recall(memory)
        if self._stabilizer is not None:
            self._stabilizer.recall(memory)


def _plane(raw: NDArray[Any]) -> NDArray[Any]:
    """A map 1,h,w or h,w without its channel."""
    return raw.reshape(raw.shape[-2:])


def _stabilizer() -> Stabilizer:
    from basnet_runtime.temporal import Stabilizer

    return Stabilizer()


def row_strips(height: int, width: int, pixels: int = _STRIP_PIXELS) -> list[slice]:
    """Rows of a picture in strips of about `pixels` pixels.

    >>> row_strips(5, 10, pixels=20)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    rows = max(1, pixels // max(1, width))
    return [slice(y, min(y + rows, height)) for y in range(0, height, rows)]


def float_mask(map_hw: NDArray[Any], height: int, width: int) -> Float32:
    """Resize a map of values 0..1 to float32 H,W; bytes H,W are only scaled to 0..1."""
    if map_hw.dtype == np.uint8:
        return cast(Float32, map_hw.astype(np.float32) / np.float32(255))
    return resize_bilinear(map_hw, height, width)


def mask_from_map(map_hw: NDArray[Any], height: int, width: int) -> UInt8:
    """Resize a map of values 0..1 to uint8 H,W in 0..255: bilinear, rounded.

    With half-pixel centers.

    Bytes H,W are a mask already.

    >>> mask_from_map(np.array([[0, 1]], np.float32), 1, 4).tolist()
    [[0, 64, 191, 255]]
    """
    if map_hw.dtype == np.uint8:
        return map_hw
    strips = row_strips(height, width)
    if len(strips) == 1:
        return _uint8(resize_bilinear(np.clip(map_hw, 0, 1), height, width))
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
    return _uint8(resize_bilinear(lines, len(lines), width))


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
