"""PyTorch FP32, and how the candidates of a search are measured against it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.kinds import Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import ParityReport, Picture, compare, tolerance_for
from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["CandidateBench"]


class CandidateBench(ABC):
    """An `islands.Judge` that makes each candidate, measures it and closes it.

    Args:
        checkpoint: What candidates must agree with.
        precision: Whose contract holds.
        judged: The contract's pictures.
        ranked: Those that parts are compared on.
    """

    def __init__(
        self, checkpoint: Checkpoint, precision: Precision, *, judged: Sequence[Picture], ranked: Sequence[Picture]
    ) -> None:
        self._checkpoint = checkpoint
        self._precision = precision
        self._judged = judged
        self._ranked = ranked
        self._reference = _Remembered(checkpoint)

    @abstractmethod
    def _candidate(self, kept: Collection[str]) -> SaliencyModel:
        """The model with these parts in FP32."""

    def distance(self, kept: Collection[str]) -> float:
        """See `islands.Judge`."""
        with self._candidate(kept) as model:
            apart = [np.abs(model.mask(p.image_HWC) - self._reference.mask(p.image_HWC)).mean() for p in self._ranked]
        return float(np.mean(apart))

    def report(self, kept: Collection[str]) -> ParityReport:
        """See `islands.Judge`."""
        with self._candidate(kept) as model:
            return compare(self._reference, model, self._judged, tolerance_for(self._precision))


class _Remembered:
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
