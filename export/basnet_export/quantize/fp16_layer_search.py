"""FP32 layer search for FP16 and bf16 networks.

    kept = fp32_layers_of(fp32_graph, reference, "fp16", seconds=600)

Candidates are not exported: the FP32 graph runs with its values rounded, but for the parts that stay FP32. They must
keep half of the contract's limits, so that pictures that were not tried keep the whole; where nothing does, the first
that keeps the limits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_export.graph.fp32_layer_search import largest_parts, search_fp32_layers
from basnet_export.quantize.fp16_emulation import RoundedModel, rounded_candidate
from basnet_export.quantize.qdq import parts_of
from basnet_export.reference import CandidateJudge, Reference
from basnet_runtime.kinds import Precision
from basnet_runtime.parity import ParityReport, Picture, Tolerance, tolerance_for
from basnet_torch.arrays import Float32
from basnet_torch.errors import ParityError

if TYPE_CHECKING:
    import onnx

__all__ = ["fp32_layers_of"]

_WORST = 2  # pictures that a candidate is measured on first


def fp32_layers_of(
    graph: onnx.ModelProto,
    reference: Reference,
    precision: Precision,
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Find the parts that must stay FP32 for the contract to hold.

    Args:
        graph: The checkpoint's `tensor` graph in FP32 with shapes inferred.
        reference: What the result must agree with.
        precision: `fp16` or `bf16`.
        seconds: When to stop.
        progress: Called with what is found.

    Raises:
        ParityError: When parts worth half of the arithmetic do not suffice, or the time is over.
    """
    parts = parts_of(graph.graph)
    judge = _RoundedGraphs(graph, reference, precision, progress)
    found = search_fp32_layers(parts, judge, seconds=seconds, progress=progress, whole_stages=True)
    kept = found.kept if found.report else judge.within_limits
    if kept is None:
        raise ParityError(replace(found, report=replace(found.report, tolerance=tolerance_for(precision))).failure)
    return largest_parts(kept, parts)


def _halved(tolerance: Tolerance) -> Tolerance:
    """Halve every limit that is one of a single picture."""

    def half(value: float | None) -> float | None:
        return None if value is None else value / 2

    iou = tolerance.boundary_iou
    return replace(
        tolerance,
        max_abs=half(tolerance.max_abs),
        mean_abs=half(tolerance.mean_abs),
        p999_abs=half(tolerance.p999_abs),
        flips=half(tolerance.flips),
        boundary_iou=None if iou is None else (1 + iou) / 2,
    )


class _RoundedGraphs(CandidateJudge):
    """Candidates are graphs whose values are rounded.

    Attributes:
        within_limits: The first parts with which all pictures kept the contract's limits, if not half of them.
    """

    def __init__(
        self, graph: onnx.ModelProto, reference: Reference, precision: Precision, progress: Callable[[str], None]
    ) -> None:
        super().__init__(reference, precision, reference.pictures)
        self._graph = graph
        self._progress = progress
        self._limits = tolerance_for(precision)
        self.within_limits: tuple[str, ...] | None = None
        self._kernels: dict[str, NDArray[Any]] = {}

    def _candidate(self, kept: Collection[str]) -> RoundedModel:
        graph = rounded_candidate(self._graph, self._precision, kept, self._rounded)
        return RoundedModel(graph, self._reference.preprocess, self._reference.postprocess)

    def _rounded(self, name: str, weight_OIKK: Float32) -> NDArray[Any]:
        """Round as the export does, once for all candidates."""
        import torch

        from basnet_export.graph.half_precision import rounded_kernels, torch_dtype

        if name not in self._kernels:
            exact = torch.from_numpy(weight_OIKK.copy())
            self._kernels[name] = rounded_kernels(exact, torch_dtype(self._precision)).float().numpy()
        return self._kernels[name]

    def distance(self, kept: Collection[str]) -> float:
        """See `fp32_layer_search.Judge`, on the worst picture; infinite where something overflows."""
        with self._candidate(kept) as model:
            image_HWC = self._worst[0].image_HWC
            apart = np.abs(model.mask(image_HWC) - self._reference.mask(image_HWC)).mean()
            return float("inf") if model.overflow else float(apart)

    def report(self, kept: Collection[str]) -> ParityReport:
        """See `fp32_layer_search.Judge`; what breaks a limit on the worst pictures is not measured on the others."""
        key = tuple(kept)
        if key not in self._reports:
            every = self._reference.pictures
            with self._candidate(kept) as model:
                report = model.judged(self._reference, self._worst if kept else every, self._limits)
                if kept and not report.exceeded:
                    report = model.judged(self._reference, every, self._limits)
                if model.overflow:
                    self._progress(model.overflow)
            if report and self.within_limits is None:
                self.within_limits = key
            self._reports[key] = replace(report, tolerance=_halved(self._limits))
        return self._reports[key]

    @cached_property
    def _worst(self) -> list[Picture]:
        """The pictures that change most where nothing stays FP32."""
        rows = zip(self.report(()).differences, self._reference.pictures, strict=True)
        moved = sorted(rows, key=lambda row: row[0].mean_abs if row[0].finite else np.inf, reverse=True)
        return [picture for _, picture in moved[:_WORST]]
