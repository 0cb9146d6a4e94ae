"""Weights stored as FP16 in graphs that compute in FP32, and the same numbers at load."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from basnet_export.graph.storage import exact_kernels, store_as_fp16
from basnet_torch.errors import ExportError

SHAPE = (8, 64, 3, 3)


def convolution(weight):
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]> graph (float[1,64,8,8] image) => (float[1,8,8,8] mask) {
        mask = Conv<pads=[1,1,1,1]>(image, weight) }"""
    )
    model.graph.node[0].name = "layer"
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    return model


def run(model):
    import onnxruntime

    image = np.random.default_rng(1).normal(size=(1, 64, 8, 8)).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0]


@pytest.fixture
def kernel():
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16).astype(np.float32)
    values[3] = 0  # a channel that training gave up
    return values


@pytest.mark.parametrize("scale", [np.ones(8), np.geomspace(-1e-6, -1e6, 8)])
def test_folded_weights_become_the_checkpoints_own_and_a_factor(kernel, scale):
    factor_O = scale.astype(np.float32)
    folded = convolution((kernel.astype(np.float64) * scale[:, None, None, None]).astype(np.float32))
    before = run(folded)
    stored = store_as_fp16(folded, {"layer": kernel})
    types = {tensor.name: tensor.data_type for tensor in stored.graph.initializer}
    assert types.pop("weight.fp16") == onnx.TensorProto.FLOAT16
    assert len(types) == int(not np.all(factor_O == 1))
    onnx.checker.check_model(stored, full_check=True)
    np.testing.assert_allclose(run(stored), before, rtol=1e-5, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("change", [1.01, 1e6, np.nan, np.inf])
def test_weights_that_are_not_the_checkpoints_stay_fp32(kernel, change):
    other = kernel.copy()
    other[1, 2, 1, 1] *= change
    before = convolution(other)
    stored = store_as_fp16(convolution(other), {"layer": kernel})
    assert stored.SerializeToString() == before.SerializeToString()
    assert store_as_fp16(convolution(other)).SerializeToString() == before.SerializeToString()


def test_small_weights_and_whole_numbers_are_left_alone():
    small = convolution(np.ones((8, 7, 3, 3), np.float32))
    whole = convolution(np.ones(SHAPE, np.float32))
    whole.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(SHAPE, np.int8), "weight"))
    for model in (small, whole):
        before = model.SerializeToString()
        assert store_as_fp16(model, {}).SerializeToString() == before


def test_weights_that_fp16_would_change_are_named():
    exact = {"a.weight": torch.ones(SHAPE), "a.bias": torch.full((8,), 1.0001)}
    assert list(exact_kernels(exact)) == ["a"]
    with pytest.raises(ExportError, match=r"b\.weight is not exact in FP16"):
        exact_kernels({**exact, "b.weight": torch.full(SHAPE, 1.0001)})


def test_a_weight_that_two_layers_read_is_stored_once(kernel):
    model = convolution(kernel)
    model.graph.node.insert(0, helper.make_node("Conv", ["image", "weight"], ["other"], "first", pads=[1, 1, 1, 1]))
    stored = store_as_fp16(model, {"layer": kernel})
    assert [node.op_type for node in stored.graph.node] == ["Cast", "Conv", "Conv"]
