#!/usr/bin/env bash
# Expected: Conv and Relu in FP16 are fused into one Conv on the CPU at every opset, since Relu has been the same operator
#   since opset 14.
# Happens: at opset 18, and only there, Relu becomes Max, which is not fused: two more nodes for each Relu. onnx describes Relu
#   as a function of other operators for opset 18 alone. The CPU has no FP16 kernel for Relu, so ONNX Runtime expands the function
#   before it thinks of a cast to FP32.
# Library: ONNX Runtime 1.32.0, onnx 1.23.2
# Source: https://onnx.ai/onnx/operators/onnx__Relu.html (versions 14, 13, 6, 1: none at 18);
#   https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html (Conv activation fusion)
# Output:
#   opset 17: Cast Conv Cast; opset 18: Cast Conv Cast Cast Max; opset 19: Cast Conv Cast
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper

onnxruntime.set_default_logger_severity(3)


def optimized(opset):
    shape = [1, 8, 8, 8]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)],
        [numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float16), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{opset}.onnx"
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(f"{opset}.onnx").graph.node if node.op_type != "ReorderOutput"]


nodes = {opset: optimized(opset) for opset in (17, 18, 19)}
print("; ".join(f"opset {opset}: {' '.join(names)}" for opset, names in nodes.items()))
assert nodes[17] == nodes[19] and nodes[17].count("Cast") == 2 and "Max" not in nodes[17]
assert nodes[18].count("Cast") > 2 and "Max" in nodes[18]
PY
