"""SmoothQuant: scale channels, and let the weights absorb the scales.

    scales = smoothquant_scales(graph, observed, {"predict.encoder.stage1.0.conv1": kernel_OIHW})

Channels differ by factors of ten, and over one range the quiet ones have a handful of steps. Dividing a channel by its
scale before it becomes bytes, and multiplying the weights that read it, gives it more; but then the loudest channel's
weights decide the steps of all weights, and the others' become coarse against larger inputs. So scales are a power of
each channel's part of the range, and of some powers the one is taken by which both errors together are smallest:
G. Xiao et al., "SmoothQuant", ICML 2023, with the power chosen for each tensor.

Legend: O, I channels of output and input, S sampled positions, C channels of the tensor, which are I of its kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from basnet_export.quantize.activation_ranges import Observed
from basnet_export.quantize.gptq import LARGEST
from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    import onnx

__all__ = ["ChannelScales", "Reader", "by_input", "groups_of", "least_error", "smoothquant_scales"]

ChannelScales: TypeAlias = Mapping[str, Float32]

_POWERS = np.linspace(0, 1, 9)
_LEAST = 1 / 32  # a channel that was quiet on all calibration pictures may be louder on others
_COMPENSATED = 1 / 16  # of the error of weights is left after `gptq_kernel`, as a variance: measured on basnet-lite


def smoothquant_scales(
    graph: onnx.GraphProto, observed: Mapping[str, Observed], kernels: Mapping[str, Float32]
) -> dict[str, Float32]:
    """Choose a scale per channel for each tensor that an INT8 convolution reads.

    Tensors with negative values are quantized over as much below zero as above, so that channels have one zero point.
    What is joined or pooled on its way has one step for each channel everywhere, so that it becomes bytes once.

    Args:
        graph: A `tensor` graph.
        observed: What its tensors were on calibration pictures.
        kernels: Weights O,I,H,W of the INT8 convolutions by the node's name; I is 1 for depthwise ones.
    """
    read = [
        (node.input[0], by_input(kernels[node.name], groups_of(node))) for node in graph.node if node.name in kernels
    ]
    origins = {name: _origins(graph, observed, name) for name, _ in read}
    origins = {name: found for name, found in origins.items() if all(one.largest > 0 for one in found.values())}
    seen: dict[str, Observed] = {}
    readers: dict[str, list[tuple[Observed, Reader]]] = {}
    for name, reader in read:
        start = 0
        for origin, tensor in origins.get(name, {}).items():
            seen[origin] = tensor
            stop = start + len(tensor.high_C)
            readers.setdefault(origin, []).append((tensor, reader.of(slice(start, stop))))
            start = stop
    top_C = {
        origin: least_error([tensor], readers[origin]) * np.float32(tensor.largest) for origin, tensor in seen.items()
    }
    return {
        name: np.minimum(np.concatenate([top_C[origin] for origin in found]) / np.float32(observed[name].largest), 1)
        for name, found in origins.items()
    }


def _origins(graph: onnx.GraphProto, observed: Mapping[str, Observed], name: str) -> dict[str, Observed]:
    """The tensors that `name` is concatenated or pooled from, or itself."""
    maker = {output: node for node in graph.node for output in node.output}.get(name)
    if maker is not None and maker.op_type == "MaxPool":
        return _origins(graph, observed, maker.input[0])
    if maker is None or maker.op_type != "Concat":
        return {name: observed[name]}
    if sum(part not in observed for part in maker.input) > 1:
        return {name: observed[name]}  # how many channels each has is not known
    found: dict[str, Observed] = {}
    start = 0
    for index, part in enumerate(maker.input):
        if part in observed:
            found |= _origins(graph, observed, part)
            start += len(observed[part].high_C)
            continue
        # An enlarged map is not observed by itself: what it is stands in the joined one.
        others = sum(len(observed[other].high_C) for other in maker.input[index + 1 :])
        whole = observed[name]
        own = slice(start, len(whole.high_C) - others)
        found[part] = Observed(low_C=whole.low_C[own], high_C=whole.high_C[own], sample_SC=whole.sample_SC[:, own])
        start = own.stop
    return found


@dataclass(frozen=True, slots=True)
class Reader:
    """A convolution's weights by input channel.

    Attributes:
        kernel_OCHW: Output channels first, then those of the tensor; a depthwise convolution has one output for each.
        depthwise: Whether each channel makes an output of its own, so that its weights have steps of their own.
    """

    kernel_OCHW: Float32
    depthwise: bool = False

    def of(self, channels: slice) -> Reader:
        """Select the part that reads these channels."""
        return Reader(self.kernel_OCHW[:, channels], self.depthwise)


def groups_of(node: onnx.NodeProto) -> int:
    """The number of groups of a convolution."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def by_input(kernel_OIHW: Float32, groups: int) -> Reader:
    """Arrange a convolution's weights by input channel."""
    return Reader(kernel_OIHW.swapaxes(0, 1), depthwise=True) if groups > 1 else Reader(kernel_OIHW)


def least_error(tensors: Sequence[Observed], readers: Sequence[tuple[Observed, Reader]]) -> Float32:
    """Choose the scale per channel with the least expected error of the readers.

    Args:
        tensors: With equal numbers of channels.
        readers: A tensor and the weights that read it, for every convolution that reads one.
    """
    parts = [np.maximum(-tensor.low_C, tensor.high_C) / tensor.largest for tensor in tensors]
    part_C = np.maximum(np.max(parts, axis=0), _LEAST).astype(np.float32)
    choices = [(part_C**power).astype(np.float32) for power in _POWERS]
    return min(choices, key=lambda scale_C: sum(_error(tensor, scale_C, kernel) for tensor, kernel in readers))


def _error(tensor: Observed, scale_C: Float32, reader: Reader) -> float:
    """Expected squared error of the kernel's output, up to a factor."""
    step_C = scale_C * np.float32(tensor.largest / tensor.steps)
    filled_C = (tensor.sample_SC != 0).mean(axis=0)  # zero is exact
    kernel_OIHW = reader.kernel_OCHW
    inputs = float(np.sum(step_C**2 * filled_C * np.square(kernel_OIHW).sum(axis=(0, 2, 3))))
    if reader.depthwise:  # a channel's scale and its weights' step cancel out
        return inputs
    step_O = (np.abs(kernel_OIHW).max(axis=(2, 3)) * scale_C).max(axis=1) / np.float32(LARGEST)
    squares_C = np.square(tensor.sample_SC).mean(axis=0) / scale_C**2
    weights = np.sum(step_O**2) * np.sum(squares_C) * kernel_OIHW[0, 0].size
    return inputs + _COMPENSATED * float(weights)
