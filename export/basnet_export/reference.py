"""PyTorch as the reference: masks computed once, candidates measured."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.kinds import Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import MaskModel, ParityReport, Picture, compare, tolerance_for
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.device import CPU, Device
from basnet_torch.spec import Postprocess, Preprocess

if TYPE_CHECKING:
    from basnet_runtime.backends.base import Backend
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["CandidateJudge", "Reference", "RememberingModel"]

_REMEMBERED_BYTES = 1_000_000_000


class RememberingModel:
    """A model that runs its network once for each picture and remembers the result."""

    def __init__(self, model: SaliencyModel, limit_bytes: int = _REMEMBERED_BYTES) -> None:
        """`limit_bytes`: raw maps beyond it are not kept but computed again."""
        self._model = model
        self._free_bytes = limit_bytes
        self._maps: dict[bytes, NDArray[Any]] = {}

    @property
    def takes_frames(self) -> bool:
        """As the model itself."""
        return self._model.takes_frames

    def mask(self, image_HWC: UInt8, /) -> Float32:
        """See `MaskModel`."""
        shape = repr(image_HWC.shape).encode()
        key = hashlib.blake2b(np.ascontiguousarray(image_HWC).data, digest_size=16, key=shape).digest()
        raw = self._maps.get(key)
        if raw is None:
            raw = self._model.infer([self._model.prepare(image_HWC)])[0]
            if raw.nbytes <= self._free_bytes:
                self._maps[key] = raw
                self._free_bytes -= raw.nbytes
        return self._model.postprocessor().undecided(raw, *image_HWC.shape[:2])

    @property
    def description(self) -> str:
        """What runs."""
        return self._model.backend.description

    def report(self, candidate: MaskModel, precision: Precision, pictures: Iterable[Picture]) -> ParityReport:
        """Return the contract of a precision without a checkpoint, and so without FP64."""
        return compare(self, candidate, pictures, tolerance_for(precision))


class Reference:
    """A checkpoint in PyTorch that remembers its masks.

    FP32, and FP64 as the reference of what is to be FP32 itself.

    Args:
        checkpoint: The weights.
        pictures: What the contract is checked on where no others are given; they live as long as this.
        device: Where PyTorch runs.
        threads: CPU threads; None takes what the container allows.
    """

    takes_frames = False

    def __init__(
        self, checkpoint: Checkpoint, pictures: Sequence[Picture], device: Device = CPU, threads: int | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.pictures = pictures
        self.device = device
        self._threads = threads
        self._engines: dict[str, Backend] = {}

    def at(self, height: int, width: int) -> Reference:
        """The same network, which answers at another size."""
        preprocess = replace(self.checkpoint.preprocess, height=height, width=width)
        checkpoint = replace(self.checkpoint, preprocess=preprocess)
        other = Reference(checkpoint, self.pictures, self.device, self._threads)
        other._engines = self._engines
        return other

    def _opened(self, precision: Literal["fp32", "fp64"]) -> SaliencyModel:
        from basnet_runtime.backends.pytorch import open_pytorch

        made, engines = self.checkpoint, self._engines
        if precision not in engines:
            engines[precision] = open_pytorch(made, device=self.device, threads=self._threads, precision=precision)
        return SaliencyModel(engines[precision], made.preprocess, made.postprocess, f"PyTorch {precision}")

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of pictures."""
        return self.checkpoint.preprocess

    @property
    def postprocess(self) -> Postprocess:
        """Postprocessing of maps."""
        return self.checkpoint.postprocess

    @property
    def has_network(self) -> bool:
        """Whether there is a network in PyTorch."""
        return True

    @cached_property
    def _model(self) -> SaliencyModel:
        return self._opened("fp32")

    @cached_property
    def _fp32(self) -> RememberingModel:
        return RememberingModel(self._model)

    @cached_property
    def _fp64(self) -> RememberingModel:
        return RememberingModel(self._opened("fp64"))

    @property
    def description(self) -> str:
        """What runs in FP32."""
        return self._fp32.description

    def mask(self, image_HWC: UInt8, /) -> Float32:
        """The FP32 mask; see `MaskModel`."""
        return self._fp32.mask(image_HWC)

    def report(
        self, candidate: MaskModel, precision: Precision, pictures: Iterable[Picture] | None = None
    ) -> ParityReport:
        """The contract of a precision, on every picture."""
        exact, own = (self._fp64, self) if precision == "fp32" else (self, None)
        return compare(
            exact,
            candidate,
            self.pictures if pictures is None else pictures,
            tolerance_for(precision),
            pytorch_fp32=own,
        )


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
                self._reports[key] = self._reference.report(model, self._precision)
        return self._reports[key]
