"""PyTorch FP32 as the reference: masks computed once, candidates measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from basnet_runtime.kinds import Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import MaskModel, ParityReport, Picture, compare, tolerance_for
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.device import CPU, Device

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["CandidateJudge", "Reference"]


class Reference:
    """A checkpoint in PyTorch FP32 that remembers its masks.

    Args:
        checkpoint: The weights.
        pictures: What the contract is checked on; they live as long as this.
        device: Where PyTorch runs.
    """

    takes_frames = False

    def __init__(self, checkpoint: Checkpoint, pictures: Sequence[Picture], device: Device = CPU) -> None:
        self.checkpoint = checkpoint
        self.pictures = pictures
        self.device = device
        self._masks: dict[int, Float32] = {}

    @cached_property
    def _model(self) -> SaliencyModel:
        from basnet_runtime.backends.pytorch import open_pytorch

        engine = open_pytorch(self.checkpoint, device=self.device)
        return SaliencyModel(engine, self.checkpoint.preprocess, self.checkpoint.postprocess, "PyTorch FP32")

    def mask(self, image_HWC: UInt8, /) -> Float32:
        """See `MaskModel`."""
        key = id(image_HWC)
        if key not in self._masks:
            self._masks[key] = self._model.mask(image_HWC)
        return self._masks[key]

    def report(self, candidate: MaskModel, precision: Precision) -> ParityReport:
        """The contract of a precision, on every picture."""
        return compare(self, candidate, self.pictures, tolerance_for(precision))


class CandidateJudge(ABC):
    """A `fp32_layer_search.Judge` that opens, measures and closes candidates.

    Args:
        reference: What candidates must agree with, and the contract's pictures.
        precision: Whose contract holds.
        ranked: The pictures that parts are compared on.
    """

    def __init__(self, reference: Reference, precision: Precision, ranked: Sequence[Picture]) -> None:
        self._reference = reference
        self._precision = precision
        self._ranked = ranked
        self._reports: dict[Hashable, ParityReport] = {}

    @abstractmethod
    def _candidate(self, kept: Collection[str]) -> SaliencyModel:
        """The model with these parts in FP32."""

    def _key(self, kept: Collection[str]) -> Hashable:
        """What a candidate depends on."""
        return tuple(kept)

    def distance(self, kept: Collection[str]) -> float:
        """See `fp32_layer_search.Judge`."""
        with self._candidate(kept) as model:
            apart = [np.abs(model.mask(p.image_HWC) - self._reference.mask(p.image_HWC)).mean() for p in self._ranked]
        return float(np.mean(apart))

    def report(self, kept: Collection[str]) -> ParityReport:
        """See `fp32_layer_search.Judge`; no candidate is measured twice."""
        key = self._key(kept)
        if key not in self._reports:
            with self._candidate(kept) as model:
                self._reports[key] = self._judged(model)
        return self._reports[key]

    def _judged(self, model: SaliencyModel) -> ParityReport:
        return self._reference.report(model, self._precision)
