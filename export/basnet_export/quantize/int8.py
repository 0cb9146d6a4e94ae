"""INT8 from a checkpoint: calibrate, choose ranges, and find which layers must stay FP32 for the contract.

    plan = int8_plan(fp32_tensor_graph, checkpoint, config, check_pictures, progress)
    graph = plan.graph_of(any_fp32_graph, config.int8_target)

All of it is found on the `tensor` graph; parts and values have the same names in the `frame` graph.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_export.graph.fp32_layer_search import search_islands, stage_of, stages_of
from basnet_export.graph.storage import exact_kernels, store_as_fp16
from basnet_export.quantize.activation_ranges import AUTO, Method, Observed, Ranges, observe, ranges_by
from basnet_export.quantize.calibration import calibration_pictures, warning_for
from basnet_export.quantize.cross_layer_equalization import equalized, equalizing_shares, scaled
from basnet_export.quantize.gptq import Kernels, rounded_kernel, second_moments
from basnet_export.quantize.qdq import (
    always_fp32,
    convolution_shares,
    int8_from_onnx,
    nodes_of,
    parts_of,
    quantized_tensors,
)
from basnet_export.quantize.smoothquant import Shares, channel_shares
from basnet_export.reference import CandidateBench
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import ParityReport, Picture
from basnet_torch.errors import ParityError, UsageError

if TYPE_CHECKING:
    import onnx

    from basnet_export.config import ExportConfig, Target
    from basnet_runtime.backends.base import Backend
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["Int8Plan", "int8_plan"]

Progress = Callable[[str], None]
_MIXED = "mixed"
_BY_CHANNEL: tuple[Method, ...] = ("minmax",)  # tried unasked where channels have ranges of their own
_RANKED = 8  # pictures of calibration that ranges and stages are compared on
_ROUNDED = 24  # pictures of calibration that kernels are rounded by


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Plan:
    """How a checkpoint becomes INT8.

    Attributes:
        ranges: Of every tensor.
        kept: Parts that stay FP32 beside the picture's and the logits' layers.
        facts: What was done, for the manifest.
        kernels: Rounded weights of every convolution that may be INT8.
        shares: What each channel of a tensor is quantized over, where channels have ranges of their own.
        moved: What each channel of a tensor is divided by in the layer before, where they have not.
        exact: The checkpoint's weights of every convolution, where FP32 layers are to be stored as FP16.
    """

    ranges: Ranges
    kept: tuple[str, ...]
    facts: Mapping[str, Any]
    kernels: Kernels = field(default_factory=dict)
    shares: Shares = field(default_factory=dict)
    moved: Shares = field(default_factory=dict)
    exact: Kernels = field(default_factory=dict)

    def float_graph_of(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What is quantized: the FP32 `tensor` or `frame` graph, with the scales of its channels moved."""
        return equalized(model, self.moved) if self.moved else model

    def graph_of(self, model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
        """The FP32 `tensor` or `frame` graph quantized by this plan; see `int8_from_onnx`."""
        graph = int8_from_onnx(
            self.float_graph_of(model),
            self.ranges,
            target=target,
            keep_fp32=self.kept,
            kernels=self.kernels,
            shares=self.shares,
        )
        return store_as_fp16(graph, self.exact) if self.exact else graph


def int8_plan(
    model: onnx.ModelProto,
    checkpoint: Checkpoint,
    config: ExportConfig,
    check_pictures: Sequence[Picture],
    progress: Progress,
) -> Int8Plan:
    """Calibrate and search.

    Args:
        model: The checkpoint's FP32 `tensor` graph, shapes inferred.
        checkpoint: What the result must agree with.
        config: Target, calibration pictures, and the layers to keep, if they are given.
        check_pictures: What the contract will be checked on, and candidates are judged by.
        progress: Called with what is being done.

    Raises:
        UsageError: For too few calibration pictures or an unknown layer.
        ParityError: When no small enough set of layers keeps the contract in the time allowed.
    """
    if config.calibration is None:
        raise UsageError("precision int8: give --calibration, a folder of real pictures like those it will see")
    nodes_of(model.graph, config.keep_fp32 or ())  # an unknown name is told before minutes of work
    pictures = calibration_pictures(config.calibration, count=config.calibration_count, seed=config.seed)
    for warning in filter(None, (warning_for(len(pictures)),)):
        progress(warning)
    progress(f"calibrating on {len(pictures)} pictures")
    with tempfile.TemporaryDirectory(prefix="basnet-int8-") as folder:
        bench = _Bench(model, checkpoint, config, Path(folder), check_pictures, _spread(pictures))
        bench.observe(pictures)
        bench.round_kernels(pictures, progress)
        methods = bench.rank_methods(progress)
        method, kept = methods[0], config.keep_fp32
        if kept is None:
            end = time.monotonic() + 60 * config.search_minutes
            parts = parts_of(model.graph, fixed=always_fp32(model.graph, config.int8_target))
            if len(methods) > 1 and not bench.report(()):
                methods = [_MIXED, *methods] if bench.mix(parts, end, progress) else methods
            method, kept = _searched(bench, methods, parts, end, progress, _layers(model.graph, config.int8_target))
        ranges = bench.ranges[method]
    facts = {**_facts(model.graph, config, pictures, method, kept), **bench.facts_of(method)}
    facts["ranges_by"] = "channel" if bench.shares else "tensor, its channels made alike in the layer before"
    progress(
        f"INT8 is {facts['int8_share']:.1%} of the arithmetic; FP32 stay {', '.join((*facts['always_fp32'], *kept))}"
    )
    return bench.plan(ranges, kept, facts)


def _layers(graph: onnx.GraphProto, target: Target) -> dict[str, float] | None:
    """Convolutions that may be INT8 with their share, where each may be by itself: sums between them are floats."""
    if target == "cpu":
        return None
    fixed = always_fp32(graph, target)
    return {name: share for name, share in convolution_shares(graph).items() if name not in fixed}


def _searched(
    bench: _Bench,
    methods: Sequence[str],
    parts: Mapping[str, float],
    end: float,
    progress: Progress,
    pieces: Mapping[str, float] | None,
) -> tuple[str, tuple[str, ...]]:
    """The first method, nearest to the contract first, for which a small enough set of layers is found, and that set.

    Raises:
        ParityError: That of the first method, when there is none.
    """
    failure: ParityError | None = None
    for method in methods:
        bench.method = method
        try:
            seconds = max(0.0, end - time.monotonic())
            return method, search_islands(parts, bench, seconds=seconds, progress=progress, pieces=pieces).kept
        except ParityError as error:
            progress(f"ranges by {method}: no set of layers keeps the contract")
            failure = failure or error
    raise failure or ParityError("no method of calibration was tried")


def _spread(pictures: Sequence[Picture], count: int = _RANKED) -> Sequence[Picture]:
    """A few of the calibration pictures, from all over."""
    return pictures[:: max(1, len(pictures) // count)][:count]


class _Bench(CandidateBench):
    """Candidates are files in a folder, quantized over the ranges of `method`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        checkpoint: Checkpoint,
        config: ExportConfig,
        folder: Path,
        judged: Sequence[Picture],
        ranked: Sequence[Picture],
    ) -> None:
        """`judged`: the contract's pictures; `ranked`: those that ranges and stages are compared on."""
        super().__init__(checkpoint, "int8", judged=judged, ranked=ranked)
        self._model = model
        self._config = config
        self._folder = folder
        self._observed: dict[str, Observed] = {}
        self.ranges: dict[str, Ranges] = {}
        self.kernels: Kernels = {}
        self.shares: Shares = {}
        self.moved: Shares = {}
        self.method: str = AUTO[0]
        self._mixture: dict[str, str] = {}
        self._exact: Kernels = exact_kernels(checkpoint.state) if config.store == "fp16" else {}

    def observe(self, pictures: Sequence[Picture]) -> None:
        """Run the FP32 graph on every calibration picture."""
        import onnx

        path = self._folder / "fp32.onnx"
        onnx.save(self._model, path)
        prepare = self._checkpoint.preprocess.apply
        inputs = ({"image": prepare(picture.image_HWC)[None]} for picture in pictures)
        self._observed = observe(path, inputs, quantized_tensors(self._model.graph), self._config.seed)

    def round_kernels(self, pictures: Sequence[Picture], progress: Progress) -> None:
        """Eight bits for every weight, and the channels of a tensor fitted to one range, or each to its own."""
        from onnx import numpy_helper

        graph = self._model.graph
        fixed = always_fp32(graph, self._config.int8_target)
        layers = [node for node in graph.node if node.op_type == "Conv" and node.name not in fixed]
        weights = {tensor.name: tensor for tensor in graph.initializer}
        kernels = {node.name: numpy_helper.to_array(weights[node.input[1]]) for node in layers}
        if self._config.int8_target == "openvino":
            self.shares = channel_shares(graph, self._observed, kernels)
        else:
            self.moved = equalizing_shares(graph, self._observed, kernels)
            self._observed = {name: tensor.over(self.moved.get(name)) for name, tensor in self._observed.items()}
        read = self.shares or self.moved
        few = _spread(pictures, _ROUNDED)
        progress(f"rounding the kernels of {len(layers)} layers by what they see on {len(few)} pictures")
        moments = second_moments(self._checkpoint, few, [node.name for node in layers], self._config.seed)
        self.kernels = {
            node.name: scaled(
                rounded_kernel(kernels[node.name], moments.pop(node.name), read.get(node.input[0])),
                made_O=self.moved.get(node.output[0]),
            )
            for node in layers
        }

    def rank_methods(self, progress: Progress) -> list[str]:
        """The one that was asked for, or those of `auto`, nearest to the contract first."""
        # By channel a step is fine already, and what is cut off moves the worst pictures more than it moves the mean.
        auto = _BY_CHANNEL if self.shares else AUTO
        asked = auto if self._config.calibration_method == "auto" else (self._config.calibration_method,)
        symmetric = self._config.int8_target == "tensorrt"
        self.ranges = {method: self._ranges_by(method, symmetric=symmetric) for method in asked}
        excess: dict[str, float] = {}
        for method in asked:
            self.method = method
            excess[method] = _excess(self.report(()))
        ranked: list[str] = sorted(asked, key=lambda method: excess[method])
        self.method = ranked[0]
        told = ", ".join(f"{method} {excess[method]:.2f}" for method in ranked)
        progress(f"ranges by {self.method} (worst of the contract's values by its limit: {told})")
        return ranked

    def _ranges_by(self, method: Method, *, symmetric: bool) -> Ranges:
        """Of each tensor; where channels have ranges of their own, as far below zero as above it, or from zero."""
        ranges = ranges_by(method, self._observed, symmetric=symmetric)
        for name in self.shares:
            largest = max(-ranges[name][0], ranges[name][1])
            ranges[name] = (0.0 if self._observed[name].low >= 0 else -largest, largest)
        return ranges

    def mix(self, parts: Collection[str], end: float, progress: Progress) -> bool:
        """Ranges of each stage by the method that moves the masks least when that stage alone is INT8.

        Returns:
            Whether there was time for all stages.
        """
        methods = list(self.ranges)
        for stage, members in stages_of(parts).items():
            others = [part for part in parts if part not in members]
            moved = {}
            for self.method in methods:
                if time.monotonic() > end:
                    return False
                moved[self.method] = self.distance(others)
            self._mixture[stage] = min(methods, key=moved.__getitem__)
        told = ", ".join(f"{stage} {method}" for stage, method in self._mixture.items())
        progress(f"ranges by stage: {told}")
        first = methods[0]
        self.ranges[_MIXED] = {
            name: self.ranges[self._mixture.get(stage_of(name), first)][name] for name in self.ranges[first]
        }
        return True

    def facts_of(self, method: str) -> dict[str, Any]:
        """Which method each stage's ranges are by, where they differ."""
        return {"method_by_stage": self._mixture} if method == _MIXED else {}

    def plan(self, ranges: Ranges, kept: Collection[str], facts: Mapping[str, Any] | None = None) -> Int8Plan:
        """What was found, with these parts in FP32."""
        return Int8Plan(
            ranges=ranges,
            kept=tuple(kept),
            facts=facts or {},
            kernels=self.kernels,
            shares=self.shares,
            moved=self.moved,
            exact=self._exact,
        )

    def _candidate(self, kept: Collection[str]) -> SaliencyModel:
        import onnx

        path = self._folder / "candidate.onnx"
        plan = self.plan(self.ranges[self.method], kept)
        onnx.save(plan.graph_of(self._model, self._config.int8_target), path)
        preprocess, postprocess = self._checkpoint.preprocess, self._checkpoint.postprocess
        return SaliencyModel(_opened(path, self._config.int8_target), preprocess, postprocess, "candidate")


def _opened(path: Path, target: Target) -> Backend:
    """In the library that the graph is for; of TensorRT's values ONNX Runtime tells as much without a GPU."""
    if target == "openvino":
        from basnet_runtime.backends.openvino import open_openvino

        return open_openvino(path, stored="int8", keep=False)
    from basnet_runtime.backends.onnxruntime import open_onnxruntime

    return open_onnxruntime(path, keep=False)


def _excess(report: ParityReport) -> float:
    """How far the worst value is beyond its limit, as a ratio; up to 1 it holds."""
    limits = report.tolerance
    return max(
        report.mean_abs / (limits.mean_abs or 1.0),
        report.flips / (limits.flips or 1.0),
        (1 - report.boundary_iou) / (1 - (limits.boundary_iou or 0.0)),
    )


def _facts(
    graph: onnx.GraphProto, config: ExportConfig, pictures: Sequence[Picture], method: str, kept: Collection[str]
) -> dict[str, Any]:
    """For the manifest: enough to do it again, and what came of it."""
    shares = convolution_shares(graph)
    fixed = always_fp32(graph, config.int8_target)
    float_nodes = {*fixed, *nodes_of(graph, kept)}
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.image_HWC.tobytes())
    return {
        "target": config.int8_target,
        "method": method,
        "pictures": len(pictures),
        "pictures_sha256": digest.hexdigest(),
        "seed": config.seed,
        "kernel_rounding": "gptq",
        "kernel_pictures": len(_spread(pictures, _ROUNDED)),
        "always_fp32": fixed,
        **({"fp32_stored_as": "fp16"} if config.store == "fp16" else {}),
        "int8_share": round(sum(share for name, share in shares.items() if name not in float_nodes), 4),
    }
