"""Eight bits for kernels and channels: what a layer gives changes less than by rounding each value for itself."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from basnet_export.quantize.activation_ranges import Observed
from basnet_export.quantize.calibration import calibration_pictures
from basnet_export.quantize.gptq import LARGEST, gptq_kernel, second_moments
from basnet_export.quantize.qdq import always_fp32, int8_from_onnx, quantized_tensors
from basnet_export.quantize.smoothquant import smoothquant_scales
from basnet_torch.checkpoint import load_checkpoint, model_from_checkpoint
from tests.models import checkpoint_file, draw_discs, fixed_graph


def layer(seed=0, channels=8, outputs=5, patches=4000, loud=1.0):
    """A kernel, and inputs K,P whose neighbors are much alike; the first channel is `loud` times as large."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(outputs, channels, 3, 3)).astype(np.float32)
    common = rng.normal(size=(channels, 1, patches))
    inputs = np.maximum(common + 0.3 * rng.normal(size=(channels, 9, patches)), 0)
    inputs[0] *= loud
    return kernel, inputs.reshape(channels * 9, patches).astype(np.float32)


def nearest(kernel):
    step = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / LARGEST
    return np.rint(kernel / step) * step


def moved(kernel, other, inputs):
    difference = (kernel - other).reshape(len(kernel), -1) @ inputs
    return float(np.sqrt(np.mean(difference**2)))


def test_rounding_by_what_a_layer_sees_moves_it_less_and_keeps_the_grid():
    kernel, inputs = layer()
    rounded = gptq_kernel(kernel, torch.from_numpy(inputs @ inputs.T)[None])
    assert moved(kernel, rounded, inputs) < 0.5 * moved(kernel, nearest(kernel), inputs)
    step = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / LARGEST
    whole = rounded / step
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
    assert np.rint(np.abs(whole)).max(axis=(1, 2, 3)).tolist() == [LARGEST] * len(kernel)


def test_inputs_never_seen_and_channels_of_zeros_are_no_trouble():
    kernel, inputs = layer()
    kernel[2] = 0
    inputs[9:18] = 0
    for seen in (inputs, np.zeros_like(inputs)):
        rounded = gptq_kernel(kernel, torch.from_numpy(seen @ seen.T)[None])
        assert np.isfinite(rounded).all()
        assert not rounded[2].any()


def test_scales_go_into_the_kernel():
    kernel, inputs = layer(loud=10)
    share = np.linspace(0.2, 1, kernel.shape[1]).astype(np.float32)
    rounded = gptq_kernel(kernel, torch.from_numpy(inputs @ inputs.T)[None], share)
    wanted = kernel * share[:, None, None]
    assert np.abs(rounded - wanted).max() < 0.1 * np.abs(wanted).max()
    by_channel = inputs / np.repeat(share, 9)[:, None]
    assert moved(wanted, rounded, by_channel) < 0.5 * moved(wanted, nearest(wanted), by_channel)


def observed(*tops, low=0.0):
    sample = np.random.default_rng(0).uniform(low, 1, (500, len(tops))).astype(np.float32) * np.float32(tops)
    return Observed(low_C=np.float32([low] * len(tops)), high_C=np.float32(tops), sample_SC=sample)


def share_of(tensor, kernel, groups=1):
    """Of the input of the one convolution of a graph."""
    from onnx import TensorProto, helper

    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=groups)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    return smoothquant_scales(graph, {"x": tensor}, {"conv": kernel}).get("x")


def test_quiet_channels_get_a_smaller_share():
    kernel = np.ones((4, 3, 3, 3), np.float32)
    share = share_of(observed(8.0, 1.0, 0.001), kernel)
    assert share[0] == 1
    assert 1 / 8 <= share[1] < 1  # never less than it needs
    assert 1 / 32 <= share[2] <= share[1]
    assert np.all(share_of(observed(2.0, 2.0), kernel[:, :2]) == 1)


def test_channels_with_negative_values_have_scales_too_of_the_largest_magnitude():
    kernel = np.ones((4, 2, 3, 3), np.float32)
    loud, quiet = share_of(observed(8.0, 1.0, low=-1.0), kernel)
    assert loud == 1
    assert 1 / 8 <= quiet < 1
    negative = Observed(low_C=np.float32([-8, -1]), high_C=np.float32([1, 1]), sample_SC=np.float32([[-8, -1], [1, 1]]))
    assert share_of(negative, kernel)[1] < 1


def test_each_channel_of_a_depthwise_layer_takes_the_range_that_it_needs():
    """Its weights have a step for each channel, so that no other channel pays for a share."""
    share = share_of(observed(8.0, 1.0, 0.5), np.float32([1e-3, 1, 1]).reshape(3, 1, 1, 1) * np.ones((3, 1, 3, 3)), 3)
    np.testing.assert_allclose(share, [1, 1 / 8, 1 / 16])


def test_depthwise_kernels_are_rounded_by_what_their_own_channel_sees():
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(5, 1, 3, 3)).astype(np.float32)
    seen = [rng.normal(size=(9, 200)) * rng.uniform(0.1, 3, (9, 1)) for _ in kernel]
    moments = torch.from_numpy(np.stack([x @ x.T for x in seen]))
    rounded = gptq_kernel(kernel, moments)
    for channel, moment in enumerate(moments):
        alone = gptq_kernel(kernel[channel : channel + 1], moment[None])
        np.testing.assert_array_equal(rounded[channel : channel + 1], alone)
    share = np.float32([1, 0.5, 0.25, 1, 0.125])
    scaled_by = gptq_kernel(kernel, moments, share)
    np.testing.assert_allclose(scaled_by, rounded * share[:, None, None, None], rtol=1e-6)


def test_a_share_is_not_taken_where_it_makes_the_weights_coarse():
    """The quiet channel is read by weights so small that its own error does not count."""
    kernel = np.ones((4, 2, 3, 3), np.float32)
    kernel[:, 1] = 1e-3
    assert share_of(observed(8.0, 0.5), kernel)[1] > share_of(observed(8.0, 0.5), np.ones_like(kernel))[1]


@pytest.fixture(scope="module")
def fp32():
    return fixed_graph()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from basnet_runtime.media.image.pictures import write_picture

    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(draw_discs(16, size=64, seed=3)[0]):
        write_picture(folder / f"{index:02}.png", image)
    return calibration_pictures(folder)


def test_moments_are_those_of_a_convolutions_input(pictures):
    checkpoint = load_checkpoint(checkpoint_file())
    name = "predict.bridge.0.conv"  # its input is so small that every patch of it is taken
    found = second_moments(checkpoint, pictures[:2], [name])[name][0].numpy()
    network, seen = model_from_checkpoint(checkpoint).eval(), []
    conv = network.get_submodule(name)
    conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for picture in pictures[:2]:
            network.mask(torch.from_numpy(checkpoint.preprocess.apply(picture.image_HWC))[None])
    unfolded = [torch.nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding)[0].numpy() for x in seen]
    np.testing.assert_allclose(found, sum(x @ x.T for x in unfolded), rtol=1e-3, atol=1e-4)


def by_channel(fp32, keep_fp32=(), low=0.0):
    """Every second channel has half of its tensor's range."""
    graph = fp32.graph
    layers = [node for node in graph.node if node.op_type == "Conv" and node.name not in always_fp32(graph, "openvino")]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ranges = dict.fromkeys(quantized_tensors(graph), (low, 4.0))
    scales, kernels = {}, {}
    for node in layers:
        kernel = weights[node.input[1]]
        scales[node.input[0]] = np.float32([0.5, 1.0] * kernel.shape[1])[: kernel.shape[1]]
        kernels[node.name] = kernel * scales[node.input[0]][:, None, None]
    model = int8_from_onnx(fp32, ranges, target="openvino", keep_fp32=keep_fp32, kernels=kernels, scales=scales)
    return model, kernels, scales


def dequantizers(node, makers):
    """What a value is led back from bytes by, through what joins and pools it, in the order of its channels."""
    if node.op_type == "DequantizeLinear":
        return [node]
    assert node.op_type in ("Concat", "MaxPool")
    return [found for name in node.input for found in dequantizers(makers[name], makers)]


def test_channels_are_divided_on_the_way_to_bytes_and_the_weights_hold_the_rest(fp32):
    """Each channel's step is its tensor's times its share; one scale leads back, for the kernels have the scales."""
    model, kernels, scales = by_channel(fp32)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    read = {node.name: node.input[0] for node in fp32.graph.node if node.op_type == "Conv"}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.name in kernels:
            found = dequantizers(makers[node.input[0]], makers)
            quantizers = [makers[one.input[0]] for one in found]
            steps = np.concatenate([constants[one.input[1]] for one in quantizers])
            (back,) = {constants[one.input[1]].item() for one in found}
            np.testing.assert_allclose(steps, back * scales[read[node.name]], rtol=1e-6)
            assert {one.attribute[0].i for one in quantizers} == {1}
            whole = makers[node.input[1]]
            stored = constants[whole.input[0]] * constants[whole.input[1]][:, None, None, None]
            np.testing.assert_allclose(stored, kernels[node.name], atol=float(constants[whole.input[1]].max()) * 0.51)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("low", [0.0, -4.0])
def test_joined_and_pooled_maps_are_made_of_bytes_and_not_a_value_changes(fp32, low, monkeypatch):
    import onnxruntime

    from basnet_export.quantize import qdq as quantization

    def run(model):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        image = np.random.default_rng(1).normal(size=[axis.dim_value or 1 for axis in shape]).astype(np.float32)
        return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"image": image})[0]

    shape = fp32.graph.input[0].type.tensor_type.shape.dim
    joined, _, _ = by_channel(fp32, low=low)
    with monkeypatch.context() as patch:
        patch.setattr(quantization, "quantize_before_concat", lambda graph: None)
        apart, _, _ = by_channel(fp32, low=low)
    assert np.ptp(run(apart)) > 0
    assert np.array_equal(run(joined), run(apart))
    makers = {node.output[0]: node.op_type for node in fp32.graph.node}
    sources = [node.input[0] for node in joined.graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))
    assert {makers[name] for name in sources}.isdisjoint({"Concat", "MaxPool"})
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in joined.graph.initializer}
    zeros = [constants[node.input[2]] for node in joined.graph.node if node.op_type == "QuantizeLinear"]
    assert all(np.all(zero == (128 if low else 0)) for zero in zeros)


def test_a_layer_in_fp32_reads_a_map_joined_in_floats(fp32):
    kept = "predict.decoder.stage3.0.conv"
    model, _, _ = by_channel(fp32, keep_fp32=[kept])
    before, after = ({node.name: node for node in graph.node} for graph in (fp32.graph, model.graph))
    makers = {node.output[0]: node for node in model.graph.node}
    assert list(after[kept].input) == list(before[kept].input)
    assert not {makers[name].op_type for name in makers[after[kept].input[0]].input} & {"DequantizeLinear"}
    onnx.checker.check_model(model, full_check=True)


def test_a_convolution_kept_in_fp32_reads_what_was_not_quantized_for_its_neighbor(fp32):
    """A block's first convolution and its shortcut read one tensor, and one of the two may stay FP32."""
    model, kernels, _ = by_channel(fp32, keep_fp32=["predict.encoder.stage2.0.conv1"])
    before, after = ({node.name: node for node in graph.node} for graph in (fp32.graph, model.graph))
    kept, neighbor = "predict.encoder.stage2.0.conv1", "predict.encoder.stage2.0.shortcut.0"
    assert before[kept].input[0] == before[neighbor].input[0]
    assert list(after[kept].input) == list(before[kept].input)
    assert after[neighbor].input[0] != before[neighbor].input[0]
    assert neighbor in kernels
    onnx.checker.check_model(model, full_check=True)
