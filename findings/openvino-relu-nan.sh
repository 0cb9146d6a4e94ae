#!/usr/bin/env bash
# Expected: NaN stays NaN through Relu and Exp, so that a network whose values overflow gives NaN at its end, and a test for finite
#   results finds it.
# Happens: in OpenVINO's CPU kernels Relu of NaN is 0 and Exp of NaN is infinite; Sigmoid, Tanh, LeakyRelu and Sqrt keep it. A NaN in
#   front of any Relu is gone behind it, and the masks are finite and wrong. ONNX Runtime keeps NaN in all of them.
# Library: OpenVINO 2026.4.1 (beside ONNX Runtime 1.32.0, onnx 1.23.2), on AVX2 (AMD EPYC)
# Source: https://onnx.ai/onnx/operators/onnx__Relu.html (y = max(0, x), which for NumPy and PyTorch is NaN)
# Output:
#   ONNX Runtime keeps NaN: True OpenVINO: {'Relu': 0.0, 'Exp': inf, 'Sigmoid': nan, 'Tanh': nan, 'LeakyRelu': nan,
#   'Sqrt': nan}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper

x = np.array([np.nan] * 16, np.float32)
OPERATORS = ("Relu", "Exp", "Sigmoid", "Tanh", "LeakyRelu", "Sqrt")
graph = helper.make_graph(
    [helper.make_node(name, ["x"], [name.lower()]) for name in OPERATORS],
    "nan",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
    [helper.make_tensor_value_info(name.lower(), TensorProto.FLOAT, x.shape) for name in OPERATORS],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
core = openvino.Core()
found = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})
kept = [bool(np.isnan(y).all()) for y in session.run(None, {"x": x})]
values = {name: float(found[name.lower()][0]) for name in OPERATORS}
print("ONNX Runtime keeps NaN:", all(kept), "OpenVINO:", values)
assert all(kept) and values["Relu"] == 0 and np.isposinf(values["Exp"])
assert all(np.isnan(values[name]) for name in OPERATORS[2:])
PY
