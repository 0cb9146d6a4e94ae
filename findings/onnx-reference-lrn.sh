#!/usr/bin/env bash
# Expected: LRN divides each channel by the sum of squares of `size` channels around it. With size 1, alpha 1, beta 1 and bias 0 that is
#   x / x^2 for every channel.
# Happens: onnx's reference evaluator counts channels by the batch axis: of one picture it computes the first channel alone and divides
#   With a usual bias of 1 all channels but the first come out as they went in. ONNX Runtime and OpenVINO compute all.
# Library: onnx 1.23.2 (beside ONNX Runtime 1.32.0, OpenVINO 2026.4.1)
# Source: https://onnx.ai/onnx/operators/onnx__LRN.html; the evaluator is meant to show what operators compute:
#   https://onnx.ai/onnx/api/reference.html; onnx/reference/ops/op_lrn.py
# Output:
#   1, 2, 4 by themselves, reference, ONNX Runtime, OpenVINO: [1.0, inf, inf] [1.0, 0.5, 0.25] [1.0, 0.5, 0.25]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

x = np.array([1, 2, 4], np.float32).reshape(1, 3, 1, 1)
graph = helper.make_graph(
    [helper.make_node("LRN", ["x"], ["y"], size=1, alpha=1.0, beta=1.0, bias=0.0)],
    "lrn",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
core = openvino.Core()
compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
with np.errstate(divide="ignore"):
    reference = ReferenceEvaluator(model).run(None, {"x": x})[0].ravel().tolist()
others = [y.ravel().tolist() for y in (session.run(None, {"x": x})[0], compiled({"x": x})[0])]
print("1, 2, 4 by themselves, reference, ONNX Runtime, OpenVINO:", reference, *others)
assert reference == [1, np.inf, np.inf]
assert np.allclose(others, [1, 0.5, 0.25])
PY
