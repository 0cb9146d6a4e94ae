#!/usr/bin/env bash
# Expected: without pads the first window of AveragePool begins at the first element; ceil_mode only adds one, shorter,
#   window at the end. 1 to 7 by three gives the means of (1 2 3), (4 5 6), (7): 2, 5, 7.
# Happens: onnx's reference evaluator gives 1.5, 4, 6: it shifts all windows. MaxPool of the same evaluator does not (3, 6, 7),
#   and ONNX Runtime gives 2, 5, 7.
# Library: onnx 1.23.2, ONNX Runtime 1.32.0
# Source: https://onnx.ai/onnx/operators/onnx__AveragePool.html (pads, ceil_mode); the evaluator is meant to show what
#   operators compute: https://onnx.ai/onnx/api/reference.html
# Output:
#   1..7 by three, reference and ONNX Runtime: AveragePool [1.5, 4.0, 6.0] [2.0, 5.0, 7.0] MaxPool [3.0, 6.0, 7.0] [3.0,
#   6.0, 7.0]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator


def pooled(operator):
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], kernel_shape=[3], strides=[3], ceil_mode=1)],
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    feeds = {"x": np.arange(1, 8, dtype=np.float32).reshape(1, 1, 7)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return ReferenceEvaluator(model).run(None, feeds)[0].ravel().tolist(), session.run(None, feeds)[0].ravel().tolist()


average, largest = pooled("AveragePool"), pooled("MaxPool")
print("1..7 by three, reference and ONNX Runtime: AveragePool", *average, "MaxPool", *largest)
assert average == ([1.5, 4, 6], [2, 5, 7]) and largest == ([3, 6, 7], [3, 6, 7])
PY
