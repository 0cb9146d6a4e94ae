#!/usr/bin/env bash
# Expected: ConvTranspose with auto_pad SAME_UPPER cuts what is too much, the odd element at the end of each axis. Saying the
#   output_shape that SAME_UPPER gives anyway (input times stride) changes nothing.
# Happens: in OpenVINO it does: with output_shape the odd element is cut at the beginning, and the whole map lies one pixel further left
#   and up. Without output_shape it is where it should be. ONNX Runtime gives the same with and without.
# Library: OpenVINO 2026.4.1 (beside ONNX Runtime 1.32.0, onnx 1.23.2)
# Source: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html (with output_shape pads are computed: "If (auto_pads ==
#   SAME_UPPER): pads[start_i] = total_padding[i]/2; pads[end_i] = total_padding[i] - (total_padding[i]/2)")
# Output:
#   a point by 1 2 3, ONNX Runtime and OpenVINO: SAME_UPPER [1.0, 2.0, 3.0, 0.0, 0.0, 0.0] [1.0, 2.0, 3.0, 0.0, 0.0,
#   0.0] with output_shape [1.0, 2.0, 3.0, 0.0, 0.0, 0.0] [2.0, 3.0, 0.0, 0.0, 0.0, 0.0]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, checker, helper, numpy_helper

x = np.array([1, 0, 0], np.float32).reshape(1, 1, 1, 3)  # one point, and a kernel whose three values tell where it lies
kernel = np.array([1, 2, 3], np.float32).reshape(1, 1, 1, 3)


def upsampled(**attributes):
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[1, 2], auto_pad="SAME_UPPER", **attributes)],
        "upsample",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 6])],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    return session.run(None, {"x": x})[0].ravel().tolist(), compiled({"x": x})[0].ravel().tolist()


plain, said = upsampled(), upsampled(output_shape=[1, 6])
print("a point by 1 2 3, ONNX Runtime and OpenVINO: SAME_UPPER", *plain, "with output_shape", *said)
assert plain == ([1, 2, 3, 0, 0, 0],) * 2
assert said == ([1, 2, 3, 0, 0, 0], [2, 3, 0, 0, 0, 0])
PY
