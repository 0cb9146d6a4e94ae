"""An FP32 graph with its layers in INT8, written as QuantizeLinear and DequantizeLinear that runtimes fuse.

    graph = int8_from_onnx(fp32_graph, ranges, target="cpu", keep_fp32=["predict.encoder.stage1.0"])

For ONNX Runtime on processors (`cpu`) activations are unsigned with a zero point, and every value between two layers is
quantized, residual sums and joined maps included, so that layers pass bytes on, as its kernels want. For OpenVINO,
whose convolutions take bytes and give floats, the inputs of convolutions alone are: sums lose nothing, for some of the
speed, and each channel may have a range of its own, because its scale goes into the weights that read it. For TensorRT
convolutions' inputs alone are too, signed and symmetric, as it asks. Weights are signed, with a scale for each channel
that they make.

What never becomes INT8 are preparing, finishing, the last sigmoid, and the layers that take the picture or a map with a
single channel: 8 bits of a logit that spans 30 are steps of a tenth, more than the whole contract allows. Layers that
make such a map stay FP32 too, and what enlarges or joins such maps, but for OpenVINO, where they give floats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, cast

import numpy as np

from basnet_export.config import Target
from basnet_export.quantize.activation_ranges import Ranges
from basnet_export.quantize.gptq import Kernels
from basnet_export.quantize.quantized_concat import join_as_bytes
from basnet_export.quantize.smoothquant import Shares, groups_of
from basnet_torch.errors import ExportError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "always_fp32",
    "convolution_shares",
    "int8_from_onnx",
    "nodes_of",
    "parts_of",
    "quantizable_nodes",
    "quantized_tensors",
]

_RECTIFIERS = ("Relu", "Clip")
_KINDS = ("Conv", *_RECTIFIERS, "Add", "Concat", "Resize", "MaxPool")
_FEW_CHANNELS = 3


def quantizable_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that may be INT8: those between the network's first and last convolution."""
    inside = {node.name for node in _after_convolution(graph)} & {node.name for node in _before_convolution(graph)}
    return [node.name for node in graph.node if node.op_type in _KINDS and node.name in inside]


def always_fp32(graph: onnx.GraphProto, target: Target) -> list[str]:
    """Convolutions that take the picture or a single channel and, where sums become bytes again, that make one.

    Convolutions in groups of several channels stay too: no runtime here is known to have fast kernels for them.
    """
    fixed = []
    shapes = _weight_shapes(graph)
    for node in _convolutions(graph):
        out_channels, of_group = shapes[node.input[1]][:2]
        groups = groups_of(node)
        few = of_group * groups if target == "openvino" else min(out_channels, of_group * groups)
        if few <= _FEW_CHANNELS or (groups > 1 and of_group > 1):
            fixed.append(node.name)
    return fixed


def nodes_of(graph: onnx.GraphProto, names: Collection[str]) -> list[str]:
    """The quantizable nodes that `names` mean: each is a node, or a part of the network with all nodes in it.

    Raises:
        UsageError: For a name that means none.
    """
    nodes = quantizable_nodes(graph)
    chosen: set[str] = set()
    for name in names:
        meant = {node for node in nodes if node == name or node.startswith(f"{name}.")}
        if not meant:
            some = ", ".join(sorted({".".join(node.split(".")[:3]) for node in nodes})[:4])
            raise UsageError(f"keep-fp32 {name}: the network has no such part; its parts are called {some}, ...")
        chosen |= meant
    return [node for node in nodes if node in chosen]


def quantized_tensors(graph: onnx.GraphProto) -> list[str]:
    """Every tensor that may be quantized over a range of its own.

    What only a ReLU or ReLU6 reads is rectified first, and what is enlarged keeps the range of the smaller map.
    """
    nodes = set(quantizable_nodes(graph))
    constant = {tensor.name for tensor in graph.initializer}
    touched = [t for node in graph.node if node.name in nodes for t in (*node.input, *node.output)]
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    passing = {t for t, kinds in readers.items() if len(kinds) == 1 and kinds < {*_RECTIFIERS}}
    passing |= {node.output[0] for node in graph.node if node.op_type == "Resize"}
    return [t for t in dict.fromkeys(touched) if t and t not in constant and t not in passing]


def convolution_shares(graph: onnx.GraphProto) -> dict[str, float]:
    """Each convolution's share of all multiplications, by node name."""
    lengths = {v.name: [axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in graph.value_info}
    shapes = _weight_shapes(graph)
    work = {
        node.name: float(np.prod(shapes[node.input[1]], dtype=np.float64) * np.prod(lengths[node.output[0]][2:]))
        for node in _convolutions(graph)
    }
    total = sum(work.values())
    return {name: value / total for name, value in work.items()}


def parts_of(graph: onnx.GraphProto, fixed: Collection[str] = ()) -> dict[str, float]:
    """What a search keeps in FP32 or not, residual blocks and single convolutions, with their share of the arithmetic.

    Args:
        graph: A `tensor` graph with shapes inferred.
        fixed: Convolutions that are not to be asked about.
    """
    shares = convolution_shares(graph)
    parts: dict[str, float] = {}
    for node in quantizable_nodes(graph):
        if node in shares and node not in fixed:
            part = node.partition(".conv")[0].partition(".shortcut")[0]
            parts[part] = parts.get(part, 0.0) + shares[node]
    return parts


def int8_from_onnx(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    target: Target,
    keep_fp32: Collection[str],
    kernels: Kernels | None = None,
    shares: Shares | None = None,
) -> onnx.ModelProto:
    """A quantized copy of an FP32 `tensor` or `frame` graph.

    Args:
        model: From `onnx_from_checkpoint`, with shapes inferred.
        ranges: Lowest and highest value of every tensor of `quantized_tensors`.
        target: What will run it.
        keep_fp32: Nodes or parts that stay FP32 beside those of `always_fp32`.
        kernels: Weights to round instead of the graph's own, by node name; for `shares` they hold those already.
        shares: Of a tensor's range, what each channel is quantized over; only for OpenVINO, and only with `kernels`.

    Raises:
        UsageError: When `keep_fp32` names a part that is not there.
        ExportError: When ONNX Runtime's quantizer refuses the graph.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    graph = model.graph
    kept = {*always_fp32(graph, target), *nodes_of(graph, keep_fp32)}
    kept |= _between_logits(graph) if target == "cpu" else set()
    inside = quantizable_nodes(graph)
    kinds = _KINDS if target == "cpu" else ("Conv",)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _put_kernels(copy.graph, {name: kernel for name, kernel in (kernels or {}).items() if name not in kept})
    try:
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if target == "tensorrt" else QuantType.QUInt8,
            tensors_range=_tensors_data(_completed(graph, ranges)),
            nodes_to_quantize=[name for name in inside if name not in kept],
            nodes_to_exclude=[],
            op_types_to_quantize=list(kinds),
            extra_options=_options(target),
        )
        quantizer.quantize_model()
        if target == "openvino":
            _quantize_for_convolutions_alone(quantizer.model.model.graph)
            _quantize_by_channel(quantizer.model.model.graph, shares or {})
            join_as_bytes(quantizer.model.model.graph)
        quantizer.model.topological_sort()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(f"the graph cannot be quantized: {str(error).splitlines()[0]}") from error
    return _tidied(cast("onnx.ModelProto", quantizer.model.model))


def _between_logits(graph: onnx.GraphProto) -> set[str]:
    """What enlarges, joins or adds maps of few channels that a convolution made: eight bits are too few for them."""
    shapes = _weight_shapes(graph)
    few: set[str] = set()
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv":
            few |= {node.output[0]} if shapes[node.input[1]][0] <= _FEW_CHANNELS else set()
        elif node.op_type in _KINDS and few.intersection(node.input):
            found.add(node.name)
            few.update(node.output)
    return found


def _quantize_for_convolutions_alone(graph: onnx.GraphProto) -> None:
    """Let whatever else reads a quantized value, a residual sum or an FP32 convolution, read what it was before."""
    quantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    dequantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    before = {name: quantized[source] for name, source in dequantized.items() if source in quantized}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in dequantized:
            node.input[:] = [before.get(name, name) for name in node.input]


def _put_kernels(graph: onnx.GraphProto, kernels: Kernels) -> None:
    from onnx import numpy_helper

    weights = {node.input[1]: kernels[node.name] for node in _convolutions(graph) if node.name in kernels}
    for tensor in graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))


def _quantize_by_channel(graph: onnx.GraphProto, shares: Shares) -> None:
    """Divide each channel by its share on the way to bytes; the weights that read it were multiplied with it."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in shares:
            name, (value, scale, zero) = node.output[0], node.input
            steps = constants[scale] * shares[value]
            added = {f"{name}_scales": steps, f"{name}_zeros": np.full(len(steps), constants[zero])}
            graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in added.items())
            node.input[1:] = list(added)
            node.attribute.append(helper.make_attribute("axis", 1))


def _options(target: Target) -> dict[str, object]:
    if target == "cpu":
        return {"WeightSymmetric": True, "ActivationSymmetric": False}
    return {
        "WeightSymmetric": True,
        "ActivationSymmetric": target == "tensorrt",
        "QuantizeBias": False,  # it is added in the sum's own type
        "OpTypesToExcludeOutputQuantization": ["Conv"],  # what follows is fused with the convolution first
    }


def _completed(graph: onnx.GraphProto, ranges: Ranges) -> Ranges:
    """With ranges for what only a ReLU or ReLU6 reads: the quantizer asks for them and takes those after it."""
    rectified = [node for node in graph.node if node.op_type in _RECTIFIERS and node.output[0] in ranges]
    return {**{node.input[0]: ranges[node.output[0]] for node in rectified}, **ranges}


def _tensors_data(ranges: Ranges) -> object:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    values = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, values)


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the quantizer's own notes, which name no part of the model."""
    del model.metadata_props[:]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
    return model


def _convolutions(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if node.op_type == "Conv")


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _after_convolution(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Convolutions and everything computed from them; nodes stand in the order they run in."""
    found: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" or made.intersection(node.input):
            found.append(node)
            made.update(node.output)
    return found


def _before_convolution(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Convolutions and everything they are computed from."""
    found: list[onnx.NodeProto] = []
    needed: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "Conv" or needed.intersection(node.output):
            found.append(node)
            needed.update(node.input)
    return found
