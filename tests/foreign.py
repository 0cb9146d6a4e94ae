"""Other people's networks, tiny: their mask is known in closed form, their graphs come in every common form."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["GAIN", "expected_map", "foreign_network"]

GAIN = 12.0  # logits are GAIN * (mean over the channels of what is fed)
_IR_OF = {9: 4, 10: 5, 11: 6, 12: 7}


def foreign_network(
    path,
    *,
    opset=17,
    size=(48, 80),
    batch=1,
    dtype="float32",
    sigmoid=True,
    side_outputs=1,
    squeezed=False,
    last=False,
    legacy_inputs=False,
    external=False,
    names=True,
    gain=GAIN,
    channels=2,
):
    """Write a network `input` -> `d0`, `d1` ...: a convolution, ReLU, pooling by two, enlarging by two, a convolution.

    With more than two channels, a convolution between them that changes nothing does most of the work.

    Args:
        path: File to write.
        opset: 9 to 24; enlarging is Upsample in 9 and Resize in four forms after it.
        size: Height and width, or None where they are free.
        batch: 1, another number, or None.
        dtype: Of input, weights and outputs.
        sigmoid: Whether the map is in 0..1.
        side_outputs: Outputs beside the first.
        squeezed: Whether outputs are N,H,W.
        last: Whether the input is N,H,W,3.
        legacy_inputs: Whether weights are listed as inputs, as before IR version 4.
        external: Whether weights are in a second file.
        names: Whether nodes have names.
        gain: Of the logits.
        channels: Between the convolutions, an even number.
    """
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}[dtype]
    real = np.float16 if dtype == "float16" else np.float32
    height, width = size or ("height", "width")
    n = batch or "batch"
    # Two channels, so that ReLU loses nothing: the mean and its negative.
    mean = np.zeros((channels, 3, 3, 3), real)
    mean[::2, :, 1, 1], mean[1::2, :, 1, 1] = 1 / 3, -1 / 3
    head = np.zeros((1, channels, 1, 1), real)
    head[0, ::2], head[0, 1::2] = 2 * gain / channels, -2 * gain / channels
    weights = {"features.weight": mean, "head.weight": head, "head.bias": np.zeros(1, real)}
    if channels > 2:
        weights["inner.weight"] = np.zeros((channels, channels, 3, 3), real)
        weights["inner.weight"][:, :, 1, 1] = np.eye(channels)
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    nodes, x = [], "input"
    if last:
        nodes.append(helper.make_node("Transpose", [x], [x := "first"], perm=[0, 3, 1, 2]))
    if dtype == "uint8":
        nodes.append(helper.make_node("Cast", [x], [x := "cast"], to=TensorProto.FLOAT))
    nodes += [
        helper.make_node("Conv", [x, "features.weight"], ["f"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["f"], ["r"]),
        *([helper.make_node("Conv", ["r", "inner.weight"], ["i"], pads=[1, 1, 1, 1])] if channels > 2 else []),
        helper.make_node("AveragePool", ["i" if channels > 2 else "r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        *_enlarged(opset, initializers),
        helper.make_node("Conv", ["u", "head.weight", "head.bias"], ["logits"]),
    ]
    made = "logits"
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", ["logits"], [made := "probability"]))
    shape = [n, 1, height, width]
    if squeezed:
        axes = {"axes": [1]} if opset < 13 else {}
        if opset >= 13:
            initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
        nodes.append(helper.make_node("Squeeze", [made, *(["axes"] if opset >= 13 else [])], ["flat"], **axes))
        made, shape = "flat", [n, height, width]
    nodes.append(helper.make_node("Identity", [made], ["d0"]))
    nodes += [helper.make_node("Neg", [made], [f"d{i + 1}"]) for i in range(side_outputs)]
    for index, node in enumerate(nodes if names else ()):
        node.name = f"{node.op_type}_{index}"
    out = TensorProto.FLOAT if dtype == "uint8" else kind
    image = [n, height, width, 3] if last else [n, 3, height, width]
    inputs = [helper.make_tensor_value_info("input", kind, image)]
    if legacy_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers]
    outputs = [helper.make_tensor_value_info(f"d{i}", out, shape) for i in range(side_outputs + 1)]
    graph = helper.make_graph(nodes, "torch_jit", inputs, outputs, initializers)
    ir_version = 3 if legacy_inputs else _IR_OF.get(opset, 8 if opset < 19 else 10)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, producer_name="pytorch"
    )
    location = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 0} if external else {}
    onnx.save(model, path, **location)
    return path


def _enlarged(opset, initializers):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    initializers.append(scales)
    if opset < 11:
        return [helper.make_node("Upsample" if opset == 9 else "Resize", ["p", "scales"], ["u"], mode="nearest")]
    roi = "" if opset > 12 else "roi"  # a region that only one mode reads had to be there
    if roi:
        initializers.append(numpy_helper.from_array(np.zeros(0, np.float32), roi))
    return [
        helper.make_node(
            "Resize",
            ["p", roi, "scales"],
            ["u"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
    ]


def expected_map(prepared_CHW, gain=GAIN):
    """What the network gives for one prepared picture: float32 h,w in 0..1."""
    mean = prepared_CHW.astype(np.float64).mean(axis=0)
    height, width = mean.shape
    up, down = (np.maximum(sign * mean, 0).reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for sign in (1, -1))
    return (1 / (1 + np.exp(-gain * np.kron(up - down, np.ones((2, 2)))))).astype(np.float32)
