#!/usr/bin/env bash
# Expected: a valid model that is converted to FP16 with its inputs and outputs kept in FP32 is a valid model.
# Happens: the Cast of each input is appended after the nodes that read it. ONNX wants nodes in topological order, so onnx.checker
#   refuses the result, and so does whatever checks it first; ONNX Runtime sorts by itself and runs it. Without kept inputs
#   there is no Cast, and the result is valid.
# Library: ONNX Runtime 1.32.0 (onnxruntime.transformers.float16), onnx 1.23.2
# Source: https://onnxruntime.ai/docs/performance/model-optimizations/float16.html (keep_io_types);
#   https://onnx.ai/onnx/repo-docs/IR.html#graphs (the nodes must be topologically sorted)
# Output:
#   Conv Relu Cast Cast: ValidationError; inputs not kept: Conv Relu: valid
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 sympy==1.14.0 packaging==26.3 <<'PY'
import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.transformers.float16 import convert_float_to_float16


def converted(*, keep_io_types):
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    return convert_float_to_float16(model, keep_io_types=keep_io_types)


def verdict(model):
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        assert "topologically sorted" in str(error)
        return "ValidationError"
    return "valid"


kept, plain = converted(keep_io_types=True), converted(keep_io_types=False)
words = [f"{' '.join(node.op_type for node in model.graph.node)}: {verdict(model)}" for model in (kept, plain)]
print(f"{words[0]}; inputs not kept: {words[1]}")
assert words == ["Conv Relu Cast Cast: ValidationError", "Conv Relu: valid"]
InferenceSession(kept.SerializeToString(), providers=["CPUExecutionProvider"])
PY
