#!/usr/bin/env bash
# Expected: GroupNormalization of a map that has one value everywhere is the bias: the mean is taken off, what is left is 0, and
#   epsilon keeps the division sound. That is why the operator has an epsilon.
# Happens: for many such values the whole map is NaN on the CPU. ONNX defines the operator from opset 21 as a function that takes
#   the variance as E[x^2] - E[x]^2; in FP32 that can be below -epsilon for a flat map, and the root of it is NaN. How many values
#   are hit depends on the order in which the CPU's kernels add.
# Library: ONNX Runtime 1.32.0, onnx 1.23.2
# Source: https://onnx.ai/onnx/operators/onnx__GroupNormalization.html (version 21: mean and variance of each group, epsilon "to use
#   to avoid division by zero")
# Output:
#   flat maps of 0.1, 0.2, ... 100.0: 389 of 1000 are NaN; the others are at most 0.01
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.4 <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper

SHAPE = [1, 8, 8, 8]
graph = helper.make_graph(
    [helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)],
    "norm",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
    [
        numpy_helper.from_array(np.ones(8, np.float32), "scale"),
        numpy_helper.from_array(np.zeros(8, np.float32), "bias"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def normalized(value):
    return session.run(None, {"x": np.full(SHAPE, value, np.float32)})[0]


maps = [normalized(tenths / 10) for tenths in range(1, 1001)]
broken = [np.isnan(found).all() for found in maps]
rest = max(float(np.abs(found).max()) for found, nan in zip(maps, broken, strict=True) if not nan)
print(f"flat maps of 0.1, 0.2, ... 100.0: {sum(broken)} of 1000 are NaN; the others are at most {rest:.2f}")
assert sum(broken) > 0
assert all(np.isnan(found).any() == nan for found, nan in zip(maps, broken, strict=True))
noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
assert np.isfinite(session.run(None, {"x": noise})[0]).all()
PY
