"""Plan INT8: calibrate, choose ranges, and search the layers that must stay FP32.

    plan = int8_plan(fp32_tensor_graph, reference, config, progress)
    graph = plan.graph_of(any_fp32_graph, config.int8_target)

All of it is found on the `tensor` graph; parts and values have the same names in the `frame` graph.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_export.graph.fp32_layer_search import search_fp32_layers, stage_of, stages_of
from basnet_export.graph.storage import exact_kernels, store_as_fp16
from basnet_export.quantize.activation_ranges import AUTO, Ranges, observe, ranges_by
from basnet_export.quantize.calibration import calibration_pictures, warning_for
from basnet_export.quantize.cross_layer_equalization import equalization_scales, equalized, scaled
from basnet_export.quantize.gptq import Kernels, gptq_kernel, second_moments
from basnet_export.quantize.qdq import (
    always_fp32,
    convolution_shares,
    int8_from_onnx,
    nodes_of,
    parts_of,
    quantized_tensors,
)
from basnet_export.quantize.smoothquant import ChannelScales, groups_of, smoothquant_scales
from basnet_export.reference import CandidateJudge, Reference
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import Picture
from basnet_torch.errors import ParityError, UsageError
from basnet_torch.files import scratch_folder

if TYPE_CHECKING:
    import onnx

    from basnet_export.config import ExportConfig, Target
    from basnet_runtime.backends.base import Backend

__all__ = ["Int8Plan", "best_by_stage", "int8_plan"]

Progress = Callable[[str], None]
_MIXED = "mixed"
_RANKED = 8  # pictures of calibration that ranges and stages are compared on
_ROUNDED = 24  # pictures of calibration that kernels are rounded by
_LEAST_SHARE = 0.5  # of the arithmetic: below that the file is not what its name says


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Plan:
    """How a checkpoint becomes INT8.

    Attributes:
        ranges: Of every tensor.
        kept: Parts that stay FP32 beside the picture's and the logits' layers.
        facts: What was done, for the manifest.
        kernels: Rounded weights of every convolution that may be INT8.
        smoothquant: What each channel of a tensor is quantized over, where channels have ranges of their own.
        equalization: What each channel of a tensor is divided by in the layer before, where they have not.
        exact: The checkpoint's weights of every convolution, where FP32 layers are to be stored as FP16.
    """

    ranges: Ranges = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    kernels: Kernels = field(default_factory=dict)
    smoothquant: ChannelScales = field(default_factory=dict)
    equalization: ChannelScales = field(default_factory=dict)
    exact: Kernels = field(default_factory=dict)

    def float_graph_of(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The FP32 graph that is quantized, with the scales of its channels moved."""
        return equalized(model, self.equalization) if self.equalization else model

    def graph_of(self, model: onnx.ModelProto, target: Target) -> onnx.ModelProto:
        """Return the FP32 `tensor` or `frame` graph quantized by this plan.

        See `int8_from_onnx`.
        """
        graph = int8_from_onnx(
            self.float_graph_of(model),
            self.ranges,
            target=target,
            keep_fp32=self.kept,
            kernels=self.kernels,
            scales=self.smoothquant,
        )
        return store_as_fp16(graph, self.exact) if self.exact else graph


def int8_plan(model: onnx.ModelProto, reference: Reference, config: ExportConfig, progress: Progress) -> Int8Plan:
    """Calibrate a network and search its FP32 layers.

    Args:
        model: The checkpoint's FP32 `tensor` graph, shapes inferred.
        reference: What the result must agree with, and the pictures that validate candidates.
        config: Target, calibration pictures, and the layers to keep, if they are given.
        progress: Called with what is being done.

    Raises:
        UsageError: For too few calibration pictures or an unknown layer.
        ParityError: When no small enough set of layers keeps the contract in the time allowed, or too few may be INT8.
    """
    if config.calibration is None:
        raise UsageError("precision int8: give --calibration, a folder of real pictures like those it will see")
    graph = model.graph
    _refuse_mostly_fp32(graph, config, config.keep_fp32 or ())  # before minutes of work, as is an unknown name
    pictures = calibration_pictures(config.calibration, count=config.calibration_count, seed=config.seed)
    for told in (warning_for(len(pictures)), f"calibrating on {len(pictures)} pictures"):
        if told:
            progress(told)
    with scratch_folder() as folder:
        plan, ranges = _calibrated(model, reference, config, pictures, folder, progress)
        judge = _QuantizedGraphs(model, reference, config, folder, plan, ranges, _spread(pictures, _RANKED))
        methods, by_stage = _ranked_methods(judge, progress), None
        method, kept = methods[0], config.keep_fp32
        if kept is None:
            end = time.monotonic() + 60 * config.search_minutes
            fixed = always_fp32(graph, config.int8_target)
            parts = parts_of(graph, fixed)
            if len(methods) > 1 and not judge.report(()):
                by_stage = best_by_stage(judge, list(ranges), parts, end)
            if by_stage:
                progress(f"ranges by stage: {', '.join(f'{stage} {best}' for stage, best in by_stage.items())}")
                first = next(iter(ranges))
                ranges[_MIXED] = {name: ranges[by_stage.get(stage_of(name), first)][name] for name in ranges[first]}
                methods = [_MIXED, *methods]
            layers = None  # a layer may be INT8 by itself where sums between layers are floats
            if config.int8_target != "cpu":
                layers = {name: cost for name, cost in convolution_shares(graph).items() if name not in fixed}
            method, kept = _searched(judge, methods, parts, end, progress, layers)
            _refuse_mostly_fp32(graph, config, kept)
    facts = _facts(graph, config, pictures, method, kept)
    facts |= {"method_by_stage": by_stage} if method == _MIXED else {}
    if not reference.has_network:
        facts |= {"kernel_rounding": "nearest", "kernel_pictures": 0}
    facts["ranges_by"] = "channel" if plan.smoothquant else "tensor, its channels made alike in the layer before"
    progress(
        f"INT8 is {facts['int8_share']:.1%} of the arithmetic; FP32 stay {', '.join((*facts['always_fp32'], *kept))}"
    )
    return replace(plan, ranges=ranges[method], kept=tuple(kept), facts=facts)


def _calibrated(
    model: onnx.ModelProto,
    reference: Reference,
    config: ExportConfig,
    pictures: Sequence[Picture],
    folder: Path,
    progress: Progress,
) -> tuple[Int8Plan, dict[str, Ranges]]:
    """Round the weights and compute ranges by the requested method or those of `auto`."""
    import onnx
    from onnx import numpy_helper

    graph, target = model.graph, config.int8_target
    path = folder / "fp32.onnx"
    onnx.save(model, path)
    fed = graph.input[0].name
    inputs = ({fed: reference.preprocess.apply(picture.image_HWC)[None]} for picture in pictures)
    observed = observe(path, inputs, quantized_tensors(graph), config.seed)

    fixed = always_fp32(graph, target)
    layers = [node for node in graph.node if node.op_type == "Conv" and node.name not in fixed]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kernels = {node.name: numpy_helper.to_array(weights[node.input[1]]) for node in layers}
    by_channel = smoothquant_scales(graph, observed, kernels) if target == "openvino" else {}
    moved = equalization_scales(graph, observed, kernels) if target != "openvino" else {}
    observed = {name: tensor.over(moved.get(name)) for name, tensor in observed.items()}
    read, few = by_channel or moved, _spread(pictures, _ROUNDED)
    moments = {}
    if reference.has_network:
        progress(f"rounding the kernels of {len(layers)} layers by what they see on {len(few)} pictures")
        moments = second_moments(reference.checkpoint, few, [node.name for node in layers], config.seed)
    for node in layers:
        scale_C, scale_O = read.get(node.input[0]), moved.get(node.output[0])
        if node.name in moments:
            rounded = gptq_kernel(kernels[node.name], moments.pop(node.name), scale_C)
            kernels[node.name] = scaled(rounded, made_O=scale_O)
        else:
            kernels[node.name] = scaled(kernels[node.name], scale_C, scale_O, groups=groups_of(node))

    methods = AUTO if config.calibration_method == "auto" else (config.calibration_method,)
    if by_channel and config.calibration_method == "auto":
        # A step by channel is fine already, and what is cut off moves the worst pictures more than it moves the mean.
        methods = ("minmax",)
    ranges: dict[str, Ranges] = {
        method: ranges_by(method, observed, symmetric=target == "tensorrt") for method in methods
    }
    for found in ranges.values():
        for name in by_channel:  # as far below zero as above it, or from zero
            largest = max(-found[name][0], found[name][1])
            found[name] = (0.0 if observed[name].low >= 0 else -largest, largest)
    exact = exact_kernels(reference.checkpoint.state) if config.store == "fp16" else {}
    plan = Int8Plan(kernels=kernels, smoothquant=by_channel, equalization=moved, exact=exact)
    return plan, ranges


def _ranked_methods(judge: _QuantizedGraphs, progress: Progress) -> list[str]:
    """Rank calibration methods, the nearest to the contract first."""
    excess: dict[str, float] = {}
    for method in judge.ranges if len(judge.ranges) > 1 else ():
        judge.method = method
        report = judge.report(())
        limits = report.tolerance
        excess[method] = max(
            report.mean_abs / (limits.mean_abs or 1.0),
            report.flips / (limits.flips or 1.0),
            (1 - report.boundary_iou) / (1 - (limits.boundary_iou or 0.0)),
        )
    ranked = sorted(judge.ranges, key=lambda method: excess.get(method, 0.0))
    judge.method = ranked[0]
    told = ", ".join(f"{method} {excess[method]:.2f}" for method in ranked if method in excess)
    progress(f"ranges by {ranked[0]}" + (f" (worst of the contract's values by its limit: {told})" if told else ""))
    return ranked


def best_by_stage(
    judge: _QuantizedGraphs, methods: Sequence[str], parts: Collection[str], end: float
) -> dict[str, str] | None:
    """Choose the best method per stage, alone in INT8; None when time is over."""
    found = {}
    for stage, members in stages_of(parts).items():
        others = [part for part in parts if part not in members]
        moved = {}
        for judge.method in methods:
            if time.monotonic() > end:
                return None
            moved[judge.method] = judge.distance(others)
        found[stage] = min(methods, key=moved.__getitem__)
    return found


def _searched(
    judge: _QuantizedGraphs,
    methods: Sequence[str],
    parts: Mapping[str, float],
    end: float,
    progress: Progress,
    pieces: Mapping[str, float] | None,
) -> tuple[str, tuple[str, ...]]:
    """Search FP32 layers by each method in turn until one succeeds.

    Raises:
        ParityError: That of the first method, when there is none.
    """
    failures = []
    for judge.method in methods:
        seconds = max(0.0, end - time.monotonic())
        found = search_fp32_layers(parts, judge, seconds=seconds, progress=progress, pieces=pieces)
        if found.report:
            return judge.method, found.kept
        progress(f"ranges by {judge.method}: no set of layers keeps the contract")
        failures.append(found.failure)
    raise ParityError(failures[0])


def _spread(pictures: Sequence[Picture], count: int) -> Sequence[Picture]:
    """Take evenly spaced pictures."""
    return pictures[:: max(1, len(pictures) // count)][:count]


class _QuantizedGraphs(CandidateJudge):
    """Candidates are files in a folder, quantized over the ranges of `method`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        reference: Reference,
        config: ExportConfig,
        folder: Path,
        plan: Int8Plan,
        ranges: Mapping[str, Ranges],
        ranked: Sequence[Picture],
    ) -> None:
        super().__init__(reference, "int8", ranked)
        self._model = model
        self._target = config.int8_target
        self._path = folder / "candidate.onnx"
        self._plan = plan
        self.ranges = ranges
        self.method = next(iter(ranges))

    def _key(self, kept: Collection[str]) -> Hashable:
        return self.method, tuple(kept)

    def _candidate(self, kept: Collection[str]) -> SaliencyModel:
        """Open a candidate; ONNX Runtime stands in for TensorRT, as it needs no GPU."""
        import onnx

        from basnet_runtime.backends.onnxruntime import open_onnxruntime
        from basnet_runtime.backends.openvino import open_openvino

        plan = replace(self._plan, ranges=self.ranges[self.method], kept=tuple(kept))
        onnx.save(plan.graph_of(self._model, self._target), self._path)
        engine: Backend = (
            open_openvino(self._path, stored="int8", keep=False)
            if self._target == "openvino"
            else open_onnxruntime(self._path, keep=False)
        )
        return SaliencyModel(engine, self._reference.preprocess, self._reference.postprocess, "candidate")


def _facts(
    graph: onnx.GraphProto, config: ExportConfig, pictures: Sequence[Picture], method: str, kept: Collection[str]
) -> dict[str, Any]:
    """Facts for the manifest: the settings and the result."""
    fixed = always_fp32(graph, config.int8_target)
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
        "int8_share": round(_int8_share(graph, config, kept), 4),
    }


def _int8_share(graph: onnx.GraphProto, config: ExportConfig, kept: Collection[str]) -> float:
    float_nodes = {*always_fp32(graph, config.int8_target), *nodes_of(graph, kept)}
    return sum(share for name, share in convolution_shares(graph).items() if name not in float_nodes)


def _refuse_mostly_fp32(graph: onnx.GraphProto, config: ExportConfig, kept: Collection[str]) -> None:
    share = _int8_share(graph, config, kept)
    if share < _LEAST_SHARE:
        raise ParityError(
            f"precision int8: {share:.1%} of the arithmetic can be INT8, must be {_LEAST_SHARE:.0%} at least. "
            "Leave it FP32, or --precision fp16"
        )
