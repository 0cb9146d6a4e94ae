"""What counts as computed in a precision: of the typed network, quantized ones too, and of the finished engine."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from basnet_export.engine.inspect import inspected_precisions
from basnet_export.engine.network import Convolution, convolutions_of, precision_share
from basnet_runtime.backends.tensorrt.library import open_tensorrt

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'")


def quantized(kind, *, activation=True, weights=True):
    """Two convolutions of 8 channels, 3x3 and 1x1; the first one between QuantizeLinear and DequantizeLinear."""
    number = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[kind]
    kernel = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    one = numpy_helper.from_array(np.zeros((8, 8, 1, 1), np.float32), "one")
    step = numpy_helper.from_array(np.float32(0.05), "step")
    steps = numpy_helper.from_array(np.full(8, 0.02, np.float32), "steps")
    zero, zeros = helper.make_tensor("zero", number, [], [0]), helper.make_tensor("zeros", number, [8], [0] * 8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
        helper.make_node("QuantizeLinear", ["kernel", "steps", "zeros"], ["kq"], axis=0),
        helper.make_node("DequantizeLinear", ["kq", "steps", "zeros"], ["kd"], axis=0),
        helper.make_node("Conv", ["xd" if activation else "x", "kd" if weights else "kernel"], ["c"], "first"),
        helper.make_node("Conv", ["c", "one"], ["y"], "second"),
    ]
    for node in nodes[-2:]:
        edge = 1 if node.name == "first" else 0
        node.attribute.append(helper.make_attribute("pads", [edge] * 4))
    kept = [n for n in nodes if not (n.output[0].startswith("x") and not activation)]
    kept = [n for n in kept if not (n.output[0] in ("kq", "kd") and not weights)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 16, 16]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(kernel, "kernel"), one, step, steps, zero, zeros]
    used = {name for node in kept for name in node.input}
    graph = helper.make_graph(kept, "g", ends[:1], ends[1:], [tensor for tensor in stored if tensor.name in used])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def convolutions(model: onnx.ModelProto):
    library = open_tensorrt("rtx")
    trt = library.trt
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString())
    return convolutions_of(library, network)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_convolution_between_quantized_operands_counts_as_such(kind):
    first, second = convolutions(quantized(kind))
    assert (first.name, first.precision, second.precision) == ("first", kind, "fp32")
    assert first.cost == 9 * second.cost == 16 * 16 * 8 * 9 * 8
    share = precision_share([first, second], kind)
    assert (share.layers, share.flops, share.source) == (0.5, 0.9, "network")


@pytest.mark.parametrize("half", [{"activation": False}, {"weights": False}])
def test_a_convolution_with_one_quantized_operand_does_not(half):
    first, _ = convolutions(quantized("int8", **half))
    assert first.precision is None


KNOWN = (
    Convolution(name="a", cost=90, precision="fp16"),
    Convolution(name="b", cost=9, precision="fp16"),
    Convolution(name="c", cost=1, precision="fp16"),
)


def layer(nodes, **told):
    return {"LayerType": "CaskConvolution", "Metadata": "\x1f".join(f"[ONNX Layer: {n}]" for n in nodes), **told}


def test_the_engine_is_believed_where_it_tells():
    """As TensorRT 10 spells it, with weights or without; as 11 does; and where shapes are free, or parts disagree."""
    report = json.dumps(
        {
            "Layers": [
                layer(["a", "relu"], Weights={"Type": "Half", "Count": 9}, Inputs=[{"Format/Datatype": "N/A"}]),
                layer(["b"], Inputs=[{"DataType": "Float", "Format": "Linear"}]),
                layer(["c"], Inputs=[{"Format/Datatype": "N/A due to dynamic shapes"}]),
                layer(["d"], Inputs=[{"DataType": "Half"}, {"DataType": "Float"}]),
                "only a name",
            ]
        }
    )
    told = inspected_precisions(report, KNOWN)
    assert told == {"a": "fp16", "b": "fp32"}
    share = precision_share(KNOWN, "fp16", told)
    assert (share.flops, share.source) == (0.91, "inspector")  # "c" is not told of, and counts as it is typed


@pytest.mark.parametrize("report", ["", "no JSON", "[]", "{}", '{"Layers": 3}', '{"Layers": [{"Name": "x"}]}'])
def test_a_report_that_tells_nothing_changes_nothing(report):
    told = inspected_precisions(report, KNOWN)
    assert told == {}
    assert precision_share(KNOWN, "fp16", told).source == "network"
