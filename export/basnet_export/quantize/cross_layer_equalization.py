"""Cross-layer equalization: move channel scales between layers.

    scales = equalization_scales(graph, observed, kernels)
    model = equalized(model, scales)

Where a runtime has one range for a whole tensor, a channel that is quiet beside the others has a handful of steps. What
makes a channel can be divided by a positive number and what reads it be multiplied with it: ReLU, maxima, enlarging,
sums and joined maps let it pass, so the network computes what it did (M. Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", ICCV 2019). Tensors that are added to each other scale one set of scales. How
far channels are moved is chosen as `smoothquant_scales` does it.

Legend: O, I channels of output and input, C channels of a tensor, S sampled positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from basnet_export.quantize.activation_ranges import Observed
from basnet_export.quantize.smoothquant import ChannelScales, Reader, by_input, groups_of, least_error
from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    import onnx

__all__ = ["equalization_scales", "equalized", "scaled"]

_ALIKE = ("Relu", "MaxPool", "Resize", "Add")  # give every channel the scale that it came with


def equalization_scales(
    graph: onnx.GraphProto, observed: Mapping[str, Observed], kernels: Mapping[str, Float32]
) -> dict[str, Float32]:
    """Choose what channels are divided by, 1/32..1, for tensors that allow it.

    Args:
        graph: A `tensor` graph.
        observed: What its tensors were on calibration pictures.
        kernels: Weights O,I,H,W by the name of the convolution, of those that will be INT8.
    """
    joined = {node.output[0]: node.input for node in graph.node if node.op_type == "Concat"}
    widths = {name: len(tensor.low_C) for name, tensor in observed.items()}
    groups = _alike(graph)
    widths |= {name: widths[seen] for names in groups for seen in names if seen in widths for name in names}
    scales: dict[str, Float32] = {}
    for names in groups:
        seen = [observed[name] for name in names if name in observed]
        if not seen:
            continue
        readers = [
            (observed.get(name, seen[0]), reader)
            for name in names
            for reader in _reading(graph, name, kernels, joined, widths)
        ]
        if readers and all(tensor.low >= 0 < tensor.high for tensor, _ in readers):
            scales |= dict.fromkeys(names, least_error(seen, readers))
    for name, inputs in joined.items():
        if any(part in scales for part in inputs):
            scales[name] = np.concatenate([scales.get(p, np.ones(widths[p], np.float32)) for p in inputs])
    return scales


def equalized(model: onnx.ModelProto, scales: ChannelScales) -> onnx.ModelProto:
    """Copy a graph with tensors divided by `scales`; it computes the same.

    Args:
        model: An FP32 `tensor` or `frame` graph.
        scales: From `equalization_scales`.
    """
    from onnx import numpy_helper

    copy = cast("onnx.ModelProto", type(model).FromString(model.SerializeToString()))
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "Conv":
            kernel, *biases = (weights[name] for name in node.input[1:3])
            values = scaled(
                numpy_helper.to_array(kernel),
                scales.get(node.input[0]),
                scales.get(node.output[0]),
                groups=groups_of(node),
            )
            kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
            for bias in biases if node.output[0] in scales else ():
                offsets = numpy_helper.to_array(bias) / scales[node.output[0]]
                bias.CopyFrom(numpy_helper.from_array(offsets, bias.name))
    return copy


def scaled(
    kernel_OIHW: Float32, read_C: Float32 | None = None, made_O: Float32 | None = None, *, groups: int = 1
) -> Float32:
    """Scale weights for an input divided by `read_C`, an output by `made_O`."""
    if read_C is not None:
        kernel_OIHW = kernel_OIHW * (read_C[:, None] if groups > 1 else read_C[None, :])[:, :, None, None]
    if made_O is not None:
        kernel_OIHW = kernel_OIHW / made_O[:, None, None, None]
    return kernel_OIHW


def _alike(graph: onnx.GraphProto) -> list[list[str]]:
    """Group tensors that share scales, because they are added or made of each other.

    Left out are those that another operation reads: it would see the scales.
    """
    group: dict[str, list[str]] = {}
    seen_by_others: set[str] = {value.name for value in (*graph.input, *graph.output)}
    for node in graph.node:
        if node.op_type in _ALIKE:
            names = [*(node.input if node.op_type == "Add" else node.input[:1]), node.output[0]]
            merged = list(dict.fromkeys(other for name in names for other in group.get(name, [name])))
            group |= dict.fromkeys(merged, merged)
        elif node.op_type == "Conv":
            group.setdefault(node.output[0], [node.output[0]])
            seen_by_others.update(name for name in node.input[:1] if name not in group)
        elif node.op_type != "Concat":
            seen_by_others.update((*node.input, *node.output))
    unique = {id(names): names for names in group.values()}
    return [names for names in unique.values() if seen_by_others.isdisjoint(names)]


def _reading(
    graph: onnx.GraphProto,
    name: str,
    kernels: Mapping[str, Float32],
    joined: Mapping[str, Sequence[str]],
    widths: Mapping[str, int],
) -> list[Reader]:
    """The weights of INT8 convolutions that read the tensor, directly or concatenated."""
    places = {name: slice(None)}
    for whole, parts in joined.items():
        if name in parts:
            start = sum(widths[part] for part in parts[: list(parts).index(name)])
            places[whole] = slice(start, start + widths[name])
    convolutions = (node for node in graph.node if node.name in kernels and node.input[0] in places)
    return [by_input(kernels[node.name], groups_of(node)).of(places[node.input[0]]) for node in convolutions]
