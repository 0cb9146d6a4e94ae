"""Scales of channels moved between layers: the network stays what it was, and its tensors fit bytes better."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from basnet_export.quantize.activation_ranges import observe, ranges_by
from basnet_export.quantize.cross_layer_equalization import equalization_scales, equalized
from basnet_export.quantize.qdq import always_fp32, int8_from_onnx, quantized_tensors
from tests.models import fixed_graph, needs_int8


@pytest.fixture(scope="module")
def fp32():
    """A network with channels that differ by a factor of a hundred, as trained ones do."""
    model = fixed_graph()
    loud = np.geomspace(0.1, 10, 97).astype(np.float32)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 4 and min(values.shape[:2]) > 3:
            uneven = values * np.resize(loud, values.shape[0])[:, None, None, None] * 0.5
            tensor.CopyFrom(numpy_helper.from_array(uneven, tensor.name))
    return model


@pytest.fixture(scope="module")
def images(fp32):
    shape = [axis.dim_value or 1 for axis in fp32.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def observed(fp32, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "fp32.onnx"
    onnx.save(fp32, path)
    return observe(path, [{"image": image} for image in images], quantized_tensors(fp32.graph))


@pytest.fixture(scope="module")
def scales(fp32, observed):
    fixed = always_fp32(fp32.graph, "cpu")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp32.graph.initializer}
    layers = [node for node in fp32.graph.node if node.op_type == "Conv" and node.name not in fixed]
    return equalization_scales(fp32.graph, observed, {node.name: weights[node.input[1]] for node in layers})


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.stack([session.run(None, {"image": image})[0] for image in images])


def test_the_network_computes_what_it_did(fp32, images, scales):
    before, after = run(fp32, images), run(equalized(fp32, scales), images)
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(after, before, atol=2e-5)


def test_what_is_added_has_one_scale_and_what_is_joined_has_that_of_its_parts(fp32, scales):
    shaped = onnx.shape_inference.infer_shapes(fp32).graph.value_info
    axes = {value.name: value.type.tensor_type.shape.dim for value in shaped}
    channels = {name: dims[1].dim_value for name, dims in axes.items() if len(dims) == 4}
    for node in fp32.graph.node:
        if node.op_type == "Add" and node.output[0] in scales:
            for name in node.input:
                assert np.array_equal(scales[name], scales[node.output[0]])
        if node.op_type == "Concat" and node.output[0] in scales:
            # What stays as it is has no scale: with kernels of another CPU that may be another map.
            parts = [scales.get(name, np.ones(channels[name])) for name in node.input]
            assert np.array_equal(scales[node.output[0]], np.concatenate(parts))
    joined = {node.output[0] for node in fp32.graph.node if node.op_type == "Concat"}
    assert joined & set(scales)
    assert any(scale.min() < 0.5 for scale in scales.values())
    assert {fp32.graph.input[0].name, fp32.graph.output[0].name}.isdisjoint(scales)


@needs_int8
def test_eight_bits_lose_less(tmp_path):
    """Half of the channels are a hundred times as loud as the others, and count no more."""
    rng = np.random.default_rng(0)
    loud = np.where(np.arange(16) % 2, 1, 100).astype(np.float32)
    kernels = {name: rng.normal(size=(16, 16, 3, 3)).astype(np.float32) / 12 for name in ("first", "second", "third")}
    kernels["first"] *= loud[:, None, None, None]
    kernels["second"] /= loud[:, None, None]
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]> graph (float[1,16,24,24] image) => (float[1,16,24,24] mask) {
        a = Conv<pads=[1,1,1,1]>(image, first_weight, bias)  b = Relu(a)
        c = Conv<pads=[1,1,1,1]>(b, second_weight, bias)  d = Relu(c)
        e = Conv<pads=[1,1,1,1]>(d, third_weight, bias)  mask = Sigmoid(e) }"""
    )
    for node, name in zip((n for n in model.graph.node if n.op_type == "Conv"), kernels, strict=True):
        node.name = name
        model.graph.initializer.append(numpy_helper.from_array(kernels[name], f"{name}_weight"))
    model.graph.node[1].name, model.graph.node[3].name = "first.relu", "second.relu"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(16, np.float32), "bias"))
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, tmp_path / "fp32.onnx")
    images = rng.normal(size=(4, 1, 16, 24, 24)).astype(np.float32)
    seen = observe(tmp_path / "fp32.onnx", [{"image": one} for one in images], quantized_tensors(model.graph))
    moved = equalization_scales(model.graph, seen, kernels)
    wanted = run(model, images)

    def error(graph, tensors):
        ranges = ranges_by("minmax", tensors, symmetric=False)
        return np.abs(run(int8_from_onnx(graph, ranges, target="cpu", keep_fp32=()), images) - wanted).mean()

    even = {name: tensor.over(moved.get(name)) for name, tensor in seen.items()}
    assert error(equalized(model, moved), even) < 0.5 * error(model, seen)
