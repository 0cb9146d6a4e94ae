"""From the network's raw map to what users get: an 8-bit mask of the picture's size and the decision on it.

    finisher = Finisher(model, stream=True)     # one for each video, one for all pictures of a run
    mask_HW, decision = finisher(frame, raw_map)

Legend: h, w the map's size; H, W the picture's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.masks import mask_from_map
from basnet_runtime.salience import SalienceDecision, SalienceThreshold
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.errors import ModelFileError

if TYPE_CHECKING:
    from basnet_runtime.frame import Frame
    from basnet_runtime.model import SaliencyModel
    from basnet_runtime.temporal import Stabilizer
    from basnet_torch.spec import Preprocess

__all__ = ["Finisher", "Finishing", "checked_map"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finishing:
    """What is done to the maps.

    Attributes:
        stabilize: Keep the masks of a video from flickering; pictures are not touched.
        empty_weak: Give an empty mask where nothing salient was found, instead of the map as it is.
    """

    stabilize: bool = False
    empty_weak: bool = False


class Finisher:
    """Finishes the maps of one model, one after the other."""

    def __init__(self, model: SaliencyModel, finishing: Finishing | None = None, *, stream: bool = False) -> None:
        """`stream`: whether the frames that come are those of one video, in order."""
        self._model = model
        self._finishing = finishing or Finishing()
        self._stabilizer = _stabilizer() if stream and self._finishing.stabilize else None
        self._salience = SalienceThreshold(model.postprocess.empty_below, stream=stream)

    def __call__(self, frame: Frame, raw: NDArray[Any]) -> tuple[UInt8, SalienceDecision]:
        """The mask, uint8 H,W, and the decision.

        Args:
            frame: The picture.
            raw: Its part of what the backend gave: float32 1,h,w, or uint8 H,W from the `frame` graph.

        Raises:
            ModelFileError: The map holds values that are not finite.
        """
        height, width = frame.image_HWC.shape[:2]
        map_hw = checked_map(self._model, raw)
        if self._stabilizer is not None:
            # Before any stretching, which moves with each frame's own range; bytes come back to the map's size first.
            map_hw = self._stabilizer(frame.image_HWC, _as_map(map_hw, self._model.preprocess))
        decision = self._salience(map_hw)
        if self._finishing.empty_weak and not decision.salient:
            return np.zeros((height, width), np.uint8), decision
        if map_hw.dtype == np.uint8:
            return cast(UInt8, map_hw), decision
        if self._model.takes_frames:
            return mask_from_map(map_hw, height, width), decision
        return mask_from_map(self._model.postprocess.stretched(map_hw), height, width), decision

    def decided(self, raw: NDArray[Any]) -> tuple[Float32, SalienceDecision]:
        """A still's map in its own size, float32 h,w, and the decision; for pictures made in strips."""
        map_hw = checked_map(self._model, raw)
        decision = self._salience(map_hw)
        if self._finishing.empty_weak and not decision.salient:
            return np.zeros_like(map_hw), decision
        return self._model.postprocess.stretched(map_hw), decision

    @property
    def memory(self) -> dict[str, NDArray[Any]]:
        """All that the next frame's mask depends on, arrays by name: a video in segments continues from it."""
        stable = {} if self._stabilizer is None else self._stabilizer.memory
        return {**self._salience.memory, **stable}

    def recall(self, memory: dict[str, NDArray[Any]]) -> None:
        """Go on from the `memory` of another finisher; an empty one is a beginning."""
        self._salience.recall(memory)
        if self._stabilizer is not None:
            self._stabilizer.recall(memory)


def checked_map(model: SaliencyModel, raw: NDArray[Any]) -> NDArray[Any]:
    """A picture's part of what the backend gave, without its channel axis: float32 h,w, or uint8 H,W.

    Raises:
        ModelFileError: It holds values that are not finite.
    """
    if model.takes_frames:
        # Bytes already: what was not finite inside the graph is lost in its cast and cannot be told here.
        return np.asarray(raw, np.uint8)
    if not np.isfinite(raw).all():  # it would become a black mask that looks like "nothing found"
        raise ModelFileError(f"{model.name}: gave values that are not finite; run it in fp32 or export again")
    return np.asarray(raw[0], np.float32)


def _stabilizer() -> Stabilizer:
    from basnet_runtime.temporal import Stabilizer

    return Stabilizer()


def _as_map(map_HW: NDArray[Any], preprocess: Preprocess) -> Float32:
    """A map of the network's size, float32 0..1."""
    import cv2

    if map_HW.dtype != np.uint8:
        return cast(Float32, map_HW)
    size = preprocess.width, preprocess.height
    return np.asarray(cv2.resize(map_HW, size, interpolation=cv2.INTER_AREA), np.float32) / np.float32(255)
