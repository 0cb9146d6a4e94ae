"""PyTorch FP32, what every candidate of a search is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.model import SaliencyModel

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["Remembered"]

Float32 = NDArray[np.float32]


class Remembered:
    """A checkpoint's masks, each picture run once however many candidates it is compared with."""

    takes_frames = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        from basnet_runtime.backends.pytorch import open_pytorch

        engine = open_pytorch(checkpoint)
        self._model = SaliencyModel(engine, checkpoint.preprocess, checkpoint.postprocess, "PyTorch FP32")
        self._masks: dict[int, Float32] = {}

    def mask(self, image_HWC: NDArray[np.uint8], /) -> Float32:
        """See `MaskModel`."""
        key = id(image_HWC)  # the pictures outlive this
        if key not in self._masks:
            self._masks[key] = self._model.mask(image_HWC)
        return self._masks[key]
