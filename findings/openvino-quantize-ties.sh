#!/usr/bin/env bash
# Expected: QuantizeLinear rounds x / scale half to even and then adds the zero point, so -0.5, 0.5, 1.5 and 2.5 at scale 1 lie 0, 0, 2
#   and 2 above any zero point.
# Happens: OpenVINO adds the zero point first and rounds the sum. With an even zero point nothing changes, with an odd one each tie goes
#   to its other neighbor: -1, 1, 1 and 3. Maps that are sums of few values, as after pooling or in small test graphs, are full of ties,
#   so that an INT8 file differs by one level here and there from ONNX Runtime, by the zero point's parity.
# Library: OpenVINO 2026.4.1 (beside ONNX Runtime 1.32.0, onnx 1.23.2)
# Source: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html (y = saturate((x / y_scale) + y_zero_point); "for (x / y_scale), it
#   rounds to the nearest even")
# Output:
#   reference, ONNX Runtime, OpenVINO: zero point 128 [0, 0, 2, 2] [0, 0, 2, 2] [0, 0, 2, 2] zero point 127 [0, 0, 2,
#   2] [0, 0, 2, 2] [-1, 1, 1, 3]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

x = np.array([-0.5, 0.5, 1.5, 2.5], np.float32)


def quantized(zero):
    """Levels above the zero point in the reference evaluator, ONNX Runtime and OpenVINO."""
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, x.shape)],
        [numpy_helper.from_array(np.array(1, np.float32), "scale"), numpy_helper.from_array(np.array(zero, np.uint8), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    found = [ReferenceEvaluator(model).run(None, {"x": x})[0], session.run(None, {"x": x})[0], compiled({"x": x})[0]]
    return [(y.astype(int) - zero).tolist() for y in found]


even, odd = quantized(128), quantized(127)
print("reference, ONNX Runtime, OpenVINO: zero point 128", *even, "zero point 127", *odd)
assert even == [[0, 0, 2, 2]] * 3
assert odd == [[0, 0, 2, 2], [0, 0, 2, 2], [-1, 1, 1, 3]]
PY
