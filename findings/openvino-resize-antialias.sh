#!/usr/bin/env bash
# Expected: a reader of ONNX files that does not know an attribute refuses the file. Resize has antialias (average what a pixel of the
#   result covers) and keep_aspect_ratio_policy (not_larger, not_smaller: what to do with sizes that would stretch).
# Happens: OpenVINO reads both files and leaves the attributes out. Stripes 1 0 -1 0, shrunk to a quarter, should average to 0 and are
#   -0.5; a picture of 12 x 24 that should become 4 x 8 is stretched to 8 x 8. ONNX Runtime and onnx's reference evaluator do what the
#   attributes say. half_pixel_symmetric, which OpenVINO does not know either, is refused in words.
# Library: OpenVINO 2026.4.1 (beside ONNX Runtime 1.32.0, onnx 1.23.2)
# Source: https://onnx.ai/onnx/operators/onnx__Resize.html (antialias, keep_aspect_ratio_policy); the reader's table says opset 19 of
#   Resize is supported: src/frontends/onnx/docs/supported_ops.md
# Output:
#   stripes, reference, ONNX Runtime, OpenVINO: [0.0, 0.0, 0.0, 0.0] [0.0, 0.0, 0.0, 0.0] [-0.5, -0.5, -0.5, -0.5]
#   12x24 fitted into 8x8: (4, 8) (4, 8) (8, 8)
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def resized(x, scales=(), sizes=(), **attributes):
    """The result in the reference evaluator, ONNX Runtime and OpenVINO."""
    tensors = {"roi": np.zeros(0, np.float32), "scales": np.array(scales, np.float32), "sizes": np.array(sizes, np.int64)}
    inputs = ["x", "roi", "scales"] + (["sizes"] if len(sizes) else [])
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], mode="linear", **attributes)],
        "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, None, None])],
        [numpy_helper.from_array(tensors[name], name) for name in inputs[1:]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    return [ReferenceEvaluator(model).run(None, {"x": x})[0], session.run(None, {"x": x})[0], compiled({"x": x})[0]]


stripes = np.tile(np.array([1, 0, -1, 0], np.float32), (1, 1, 8, 6))
middles = [y[0, 0, 4, 1:-1].tolist() for y in resized(stripes, scales=(1, 1, 1, 0.25), antialias=1)]
wide = np.zeros((1, 1, 12, 24), np.float32)
shapes = [y.shape[2:] for y in resized(wide, sizes=(8, 8), axes=[2, 3], keep_aspect_ratio_policy="not_larger")]
print("stripes, reference, ONNX Runtime, OpenVINO:", *middles, "12x24 fitted into 8x8:", *shapes)
assert np.allclose(middles[:2], 0, atol=1e-6) and np.allclose(middles[2], -0.5)
assert shapes == [(4, 8), (4, 8), (8, 8)]
PY
