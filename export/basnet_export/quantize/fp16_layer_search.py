"""FP32 layer search for FP16 and bf16 networks.

    kept = fp32_layers_of(fp32_graph, reference, "fp16", seconds=600)

Candidates are not exported: the FP32 graph runs with its values rounded, but for the parts that stay FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_export.graph.fp32_layer_search import search_fp32_layers
from basnet_export.quantize.fp16_emulation import RoundedModel, rounded_candidate
from basnet_export.quantize.qdq import parts_of
from basnet_export.reference import CandidateJudge, Reference
from basnet_runtime.kinds import Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import ParityReport, tolerance_for
from basnet_torch.arrays import Float32
from basnet_torch.errors import ParityError

if TYPE_CHECKING:
    import onnx

__all__ = ["fp32_layers_of"]


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
    judge = _RoundedGraphs(graph, reference, precision, progress)
    found = search_fp32_layers(parts_of(graph.graph), judge, seconds=seconds, progress=progress)
    if not found.report:
        raise ParityError(found.failure)
    return found.kept


class _RoundedGraphs(CandidateJudge):
    """Candidates are graphs whose values are rounded."""

    def __init__(
        self, graph: onnx.ModelProto, reference: Reference, precision: Precision, progress: Callable[[str], None]
    ) -> None:
        super().__init__(reference, precision, reference.pictures)
        self._graph = graph
        self._progress = progress
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
        """See `fp32_layer_search.Judge`; infinite where something overflows."""
        with self._candidate(kept) as model:
            apart = [np.abs(model.mask(p.image_HWC) - self._reference.mask(p.image_HWC)).mean() for p in self._ranked]
            return float("inf") if model.overflow else float(np.mean(apart))

    def _judged(self, model: SaliencyModel) -> ParityReport:
        assert isinstance(model, RoundedModel)  # noqa: S101 - `_candidate` gives nothing else
        report = model.judged(self._reference, self._reference.pictures, tolerance_for(self._precision))
        if model.overflow:
            self._progress(model.overflow)
        return report
