#!/usr/bin/env bash
# Expected: float32 Sigmoid is positive down to about -87: at -18 it is 1.5e-8, so its logarithm is -18.
# Happens: on the CPU it is exactly 0 at -18 and below, and its logarithm is -inf. The kernel clamps its input to -18..18 and
#   evaluates a rational function; at -16 the result is half of what it should be.
# Library: ONNX Runtime 1.32.0
# Source: https://onnx.ai/onnx/operators/onnx__Sigmoid.html (y = 1 / (1 + exp(-x))); MlasLogisticConstants in
#   onnxruntime/core/mlas/lib/logistic.cpp
# Output:
#   sigmoid of -10, -16, -18, -30: [4.538893699645996e-05, 5.960464477539063e-08, 0.0, 0.0] log of -18: -inf NumPy at -18:
#   1.5229979e-08
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper

graph = helper.make_graph(
    [helper.make_node("Sigmoid", ["x"], ["y"]), helper.make_node("Log", ["y"], ["log"])],
    "sigmoid",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("y", "log")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
checker.check_model(model, full_check=True)
x = np.array([-10, -16, -18, -30], np.float32)
y, log = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
true = 1 / (1 + np.exp(-x))
print("sigmoid of -10, -16, -18, -30:", y.tolist(), "log of -18:", log[2], "NumPy at -18:", true[2])
assert (true > 0).all() and y[0] > 0 and (y[2:] == 0).all() and np.isneginf(log[2:]).all()
PY
