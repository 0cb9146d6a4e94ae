#!/usr/bin/env bash
# Expected: with ceil_mode MaxPool has one more, shorter window at the end, but none that would begin in the padding behind the input: of
#   6 elements, windows of 2 by threes begin at 0 and 3, and the next would begin behind the last. PyTorch, ONNX and ONNX Runtime agree.
# Happens: OpenVINO, reading the ONNX file, gives a third value: -3.4028235e38, the largest of nothing. A map with such a column is one
#   element larger than the graph's own output shape says. AveragePool of the same reader ends where it should.
# Library: OpenVINO 2026.4.1 (beside ONNX Runtime 1.32.0, onnx 1.23.2)
# Source: https://onnx.ai/onnx/operators/onnx__MaxPool.html ("Sliding windows that would start in the right padded region are
#   ignored"); OpenVINO's MaxPool-14 has the rounding type ceil_torch for it
# Output:
#   -1..-6 by threes, width, ONNX Runtime, OpenVINO: MaxPool 2 [-1.0, -4.0] [-1.0, -4.0, -3.4028234663852886e+38]
#   AveragePool 2 [-1.5, -4.5] [-1.5, -4.5]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper, shape_inference

x = -np.arange(1, 7, dtype=np.float32).reshape(1, 1, 1, 6)


def pooled(operator):
    """The graph's own width, and the values in ONNX Runtime and OpenVINO."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], kernel_shape=[1, 2], strides=[1, 3], ceil_mode=1)],
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    checker.check_model(model, full_check=True)
    width = shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim[3].dim_value
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    return width, session.run(None, {"x": x})[0].ravel().tolist(), compiled({"x": x})[0].ravel().tolist()


largest, average = pooled("MaxPool"), pooled("AveragePool")
print("-1..-6 by threes, width, ONNX Runtime, OpenVINO: MaxPool", *largest, "AveragePool", *average)
assert largest == (2, [-1, -4], [-1, -4, float(np.finfo(np.float32).min)])
assert average == (2, [-1.5, -4.5], [-1.5, -4.5])
PY
