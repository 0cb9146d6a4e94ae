"""INT8 graphs with QuantizeLinear and DequantizeLinear (QDQ).

    graph = int8_from_onnx(fp32_graph, ranges, target="cpu", keep_fp32=["predict.encoder.stage1.0"])

For ONNX Runtime on CPUs (`cpu`) activations are unsigned with a zero point, and every value between two layers is
quantized, residual sums and joined maps included, so that layers pass bytes on, as its kernels want. For OpenVINO,
whose convolutions take bytes and give floats, the inputs of convolutions alone are: sums lose nothing, for some of the
speed, and each channel may have a range of its own, because its scale goes into the weights that read it. For TensorRT
convolutions' inputs alone are too, signed and symmetric, as it asks. Weights are signed, with a scale for each channel
that they make.

What never becomes INT8 are preprocessing, postprocessing, the last sigmoid, and the layers that take the picture or a
map with a single channel: 8 bits of a logit that spans 30 are steps of a tenth, more than the whole contract allows.
Layers that make such a map stay FP32 too, and what enlarges or joins such maps, but for OpenVINO, where they give
floats.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from basnet_export.config import Target
from basnet_export.quantize.activation_ranges import Ranges
from basnet_export.quantize.gptq import Kernels
from basnet_export.quantize.quantized_concat import constant, quantize_before_concat
from basnet_export.quantize.smoothquant import ChannelScales, groups_of
from basnet_torch.errors import ExportError, UsageError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

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
    """Names of the nodes that may be INT8: first to last convolution."""
    inside = _reached(graph.node, "input", "output") & _reached(reversed(graph.node), "output", "input")
    return [node.name for node in graph.node if node.op_type in _KINDS and node.name in inside]


def always_fp32(graph: onnx.GraphProto, target: Target) -> list[str]:
    """Convolutions that never become INT8: at the picture or one channel.

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
    """Resolve names of nodes or parts to quantizable nodes.

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
    """Names of the tensors that may have a range of their own.

    What only a ReLU or ReLU6 reads is rectified first, and what is enlarged keeps the range of the smaller map, unless
    a convolution reads it by itself.
    """
    nodes = set(quantizable_nodes(graph))
    constant = {tensor.name for tensor in graph.initializer}
    touched = [t for node in graph.node if node.name in nodes for t in (*node.input, *node.output)]
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    passing = {t for t, kinds in readers.items() if len(kinds) == 1 and kinds < {*_RECTIFIERS}}
    enlarged = (node.output[0] for node in graph.node if node.op_type == "Resize")
    passing |= {name for name in enlarged if "Conv" not in readers.get(name, ())}
    return [t for t in dict.fromkeys(touched) if t and t not in constant and t not in passing]


def convolution_shares(graph: onnx.GraphProto) -> dict[str, float]:
    """Each convolution's share of the multiplications, by node name."""
    lengths = {v.name: [axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in graph.value_info}
    shapes = _weight_shapes(graph)
    work = {
        node.name: float(np.prod(shapes[node.input[1]], dtype=np.float64) * np.prod(lengths[node.output[0]][2:]))
        for node in _convolutions(graph)
    }
    total = sum(work.values())
    return {name: value / total for name, value in work.items()}


def parts_of(graph: onnx.GraphProto, fixed: Collection[str] = ()) -> dict[str, float]:
    """Units of the FP32 layer search with their share of the arithmetic.

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
    scales: ChannelScales | None = None,
) -> onnx.ModelProto:
    """Quantize an FP32 `tensor` or `frame` graph.

    Args:
        model: From `onnx_from_checkpoint`, with shapes inferred.
        ranges: Lowest and highest value of every tensor of `quantized_tensors`.
        target: What will run it.
        keep_fp32: Nodes or parts that stay FP32 beside those of `always_fp32`.
        kernels: Weights to round instead of the graph's own, by node name; for `scales` they hold those already.
        scales: Of a tensor's range, what each channel is quantized over; only for OpenVINO, and only with `kernels`.

    Raises:
        UsageError: When `keep_fp32` names a part that is not there.
        ExportError: When ONNX Runtime's quantizer refuses the graph.
    """
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common as passes
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    graph = model.graph
    kept = {*always_fp32(graph, target), *nodes_of(graph, keep_fp32)}
    kept |= _between_logits(graph) if target == "cpu" else set()
    inside = quantizable_nodes(graph)
    kinds = _KINDS if target == "cpu" else ("Conv",)
    # The quantizer asks for ranges of what only a ReLU or ReLU6 reads, and takes those after it.
    rectified = [node for node in graph.node if node.op_type in _RECTIFIERS and node.output[0] in ranges]
    ranges = {**{node.input[0]: ranges[node.output[0]] for node in rectified}, **ranges}
    values = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
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
            tensors_range=TensorsData(CalibrationMethod.MinMax, values),
            nodes_to_quantize=[name for name in inside if name not in kept],
            nodes_to_exclude=[],
            op_types_to_quantize=list(kinds),
            extra_options=_options(target),
        )
        quantizer.quantize_model()
        if target != "openvino":
            quantizer.model.topological_sort()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(f"the graph cannot be quantized: {str(error).splitlines()[0]}") from error
    found = ir.from_proto(quantizer.model.model)
    if target == "openvino":
        _quantize_for_convolutions_alone(found.graph)
        _quantize_by_channel(found.graph, scales or {})
        quantize_before_concat(found.graph)
        passes.TopologicalSortPass()(found)
    passes.RemoveUnusedNodesPass()(found)
    passes.ClearMetadataAndDocStringPass()(found)
    quantized: onnx.ModelProto = ir.to_proto(found)
    quantized.ClearField("metadata_props")  # the quantizer's own notes, which name no part of the model
    quantized.graph.ClearField("value_info")
    return quantized


def _between_logits(graph: onnx.GraphProto) -> set[str]:
    """Nodes that resize, join or add maps of few channels; 8 bits are too few."""
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


def _quantize_for_convolutions_alone(graph: ir.Graph) -> None:
    """Let all but INT8 convolutions read the value before its quantization."""
    for node in graph:
        source = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] else None
        for user, index in tuple(node.outputs[0].uses()) if source is not None else ():
            weight = user.inputs[1].producer() if user.op_type == "Conv" and user.inputs[1] else None
            if source is not None and (weight is None or weight.op_type != "DequantizeLinear"):
                user.replace_input_with(index, source.inputs[0])


def _put_kernels(graph: onnx.GraphProto, kernels: Kernels) -> None:
    from onnx import numpy_helper

    weights = {node.input[1]: kernels[node.name] for node in _convolutions(graph) if node.name in kernels}
    for tensor in graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))


def _quantize_by_channel(graph: ir.Graph, scales: ChannelScales) -> None:
    """Quantize each channel with its own scale, absorbed by its readers."""
    import onnx_ir as ir

    for node in graph:
        value, *step_and_zero = node.inputs[:3]
        scale_C = scales.get(str(value.name)) if node.op_type == "QuantizeLinear" and value is not None else None
        if scale_C is not None:
            step, zero = (each.const_value.numpy() for each in step_and_zero if each and each.const_value)
            steps, name = step * scale_C, node.outputs[0].name
            node.replace_input_with(1, constant(graph, f"{name}_scales", steps))
            node.replace_input_with(2, constant(graph, f"{name}_zeros", np.full(len(steps), zero)))
            node.attributes.add(ir.AttrInt64("axis", 1))


def _options(target: Target) -> dict[str, object]:
    if target == "cpu":
        return {"WeightSymmetric": True, "ActivationSymmetric": False}
    return {
        "WeightSymmetric": True,
        "ActivationSymmetric": target == "tensorrt",
        "QuantizeBias": False,  # it is added in the sum's own type
        "OpTypesToExcludeOutputQuantization": ["Conv"],  # what follows is fused with the convolution first
    }


def _convolutions(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.node if node.op_type == "Conv")


def _weight_shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _reached(nodes: Iterable[onnx.NodeProto], taken: str, given: str) -> set[str]:
    """Names of convolutions and of all nodes that follow them."""
    found: set[str] = set()
    values: set[str] = set()
    for node in nodes:
        if node.op_type == "Conv" or values.intersection(getattr(node, taken)):
            found.add(node.name)
            values.update(getattr(node, given))
    return found
