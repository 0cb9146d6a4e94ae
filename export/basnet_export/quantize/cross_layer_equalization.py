"""Scales of channels moved from one layer to the next, so that bytes over one range fit every channel of a tensor.

    shares = equalizing_shares(graph, observed, kernels)
    model = equalized(model, shares)

Where a runtime has one range for a whole tensor, a channel that is quiet beside the others has a handful of steps. What
makes a channel can be divided by a positive number and what reads it be multiplied with it: ReLU, maxima, enlarging,
sums and joined maps let it pass, so the network computes what it did (M. Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", ICCV 2019). Tensors that are added to each other share one set of scales. How
far channels are moved is chosen as `channel_shares` does it.

Legend: O, I channels of output and input, C channels of a tensor, S sampled positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from basnet_export.quantize.activation_ranges import Observed
from basnet_export.quantize.smoothquant import Reader, Shares, by_input, groups_of, least_error
from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    import onnx

__all__ = ["equalized", "equalizing_shares", "scaled"]

_ALIKE = ("Relu", "MaxPool", "Resize", "Add")  # give every channel the scale that it came with


def equalizing_shares(
    graph: onnx.GraphProto, observed: Mapping[str, Observed], kernels: Mapping[str, Float32]
) -> dict[str, Float32]:
    """By tensor what each of its channels is divided by, in 1/32..1; tensors that cannot be scaled have none.

    Args:
        graph: A `tensor` graph.
        observed: What its tensors were on calibration pictures.
        kernels: Weights O,I,H,W by the name of the convolution, of those that will be INT8.
    """
    joined = {node.output[0]: node.input for node in graph.node if node.op_type == "Concat"}
    widths = {name: len(tensor.low_C) for name, tensor in observed.items()}
    groups = _alike(graph)
    widths |= {name: widths[seen] for names in groups for seen in names if seen in widths for name in names}
    shares: dict[str, Float32] = {}
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
            shares |= dict.fromkeys(names, least_error(seen, readers))
    for name, inputs in joined.items():
        if any(part in shares for part in inputs):
            shares[name] = np.concatenate([shares.get(p, np.ones(widths[p], np.float32)) for p in inputs])
    return shares


def equalized(model: onnx.ModelProto, shares: Shares) -> onnx.ModelProto:
    """A copy that computes the same, in which every tensor of `shares` is divided by its own, channel by channel.

    Args:
        model: An FP32 `tensor` or `frame` graph.
        shares: From `equalizing_shares`.
    """
    from onnx import numpy_helper

    copy = cast("onnx.ModelProto", type(model).FromString(model.SerializeToString()))
    weights = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "Conv":
            kernel, *biases = (weights[name] for name in node.input[1:3])
            values = scaled(
                numpy_helper.to_array(kernel),
                shares.get(node.input[0]),
                shares.get(node.output[0]),
                groups=groups_of(node),
            )
            kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
            for bias in biases if node.output[0] in shares else ():
                offsets = numpy_helper.to_array(bias) / shares[node.output[0]]
                bias.CopyFrom(numpy_helper.from_array(offsets, bias.name))
    return copy


def scaled(
    kernel_OIHW: Float32, read_C: Float32 | None = None, made_O: Float32 | None = None, *, groups: int = 1
) -> Float32:
    """Weights that read a tensor divided by `read_C` and make one divided by `made_O`."""
    if read_C is not None:
        kernel_OIHW = kernel_OIHW * (read_C[:, None] if groups > 1 else read_C[None, :])[:, :, None, None]
    if made_O is not None:
        kernel_OIHW = kernel_OIHW / made_O[:, None, None, None]
    return kernel_OIHW


def _alike(graph: onnx.GraphProto) -> list[list[str]]:
    """Tensors whose channels have one scale, because they are added or made of each other, in the network's order.

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
    """The part of each INT8 convolution's weights that reads the tensor, directly or in a joined map."""
    places = {name: slice(None)}
    for whole, parts in joined.items():
        if name in parts:
            start = sum(widths[part] for part in parts[: list(parts).index(name)])
            places[whole] = slice(start, start + widths[name])
    convolutions = (node for node in graph.node if node.name in kernels and node.input[0] in places)
    return [by_input(kernels[node.name], groups_of(node)).of(places[node.input[0]]) for node in convolutions]
