"""Graphs whose values are rounded to their own type: what 16 bits lose is lost, what overflows is told."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from basnet_export.graph.half_precision import rounded_kernels
from basnet_export.quantize.fp16_emulation import RoundedModel, rounded_candidate, rounded_graph
from basnet_runtime.open import open_model
from basnet_runtime.parity import compare, tolerance_for
from basnet_torch.errors import ExportError
from basnet_torch.spec import Postprocess, Preprocess
from tests.models import checkpoint_file, discs, exported

SIDE = 32
MASK = np.float32


def graph_of(*nodes, weights=(), half=TensorProto.FLOAT16, channels=2, opset=19):
    """`image` cast to 16 bits as `x`, the nodes, and `y` cast to FP32 as `mask`."""
    first = helper.make_node("Cast", ["image"], ["x"], to=half, name="first")
    last = helper.make_node("Cast", ["y"], ["mask"], to=TensorProto.FLOAT, name="last")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, SIDE, SIDE])
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)
    graph = helper.make_graph([first, *nodes, last], "small", [image], [mask], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(opset, 9))


def run(model, value, channels=2):
    """The result for an image of one value, and what overflowed."""
    rounded = RoundedModel(rounded_graph(model), Preprocess(height=SIDE, width=SIDE), Postprocess())
    result = rounded.backend.infer(np.full((1, channels, SIDE, SIDE), value, MASK))
    return result, rounded.backend.overflows[0]


def kernel(*taps, dtype=np.float16):
    return numpy_helper.from_array(np.array(taps, dtype).reshape(1, -1, 1, 1), "weight")


def axes(*numbers):
    return numpy_helper.from_array(np.array(numbers, np.int64), "axes")


CONV = helper.make_node("Conv", ["x", "weight"], ["y"], name="conv")


def test_each_value_is_rounded_to_its_type():
    """1 + 2^-11 is no FP16 number, nor is 1/3; their sum is rounded once more."""
    add = helper.make_node("Add", ["x", "third"], ["y"], name="add")
    third = numpy_helper.from_array(np.array(1 / 3, np.float16), "third")
    result, _ = run(graph_of(add, weights=[third]), 1 + 2.0**-11)
    want = np.float16(1 + 2.0**-11) + np.float16(1 / 3)
    assert result.dtype == np.float32
    assert set(result.ravel()) == {MASK(want)} != {MASK(1 + 2.0**-11) + MASK(1 / 3)}


def test_bf16_keeps_eight_bits():
    add = helper.make_node("Add", ["x", "x"], ["y"], name="add")
    result, overflows = run(graph_of(add, half=TensorProto.BFLOAT16), 1e6)
    assert set(result.ravel()) == {MASK(2 * 999424)}  # 1e6 to 8 bits
    assert overflows == {}


def test_a_value_beyond_the_largest_overflows():
    result, overflows = run(graph_of(helper.make_node("Mul", ["x", "x"], ["y"], name="square")), 300)
    assert np.isinf(result).all()
    assert overflows == {"square": np.inf}


@pytest.mark.parametrize("value", [255, 1e-3])
def test_what_fits_does_not_overflow(value):
    result, overflows = run(graph_of(helper.make_node("Mul", ["x", "x"], ["y"], name="square")), value)
    assert np.allclose(result, value**2, rtol=1e-2)
    assert overflows == {}


def test_terms_that_cancel_overflow_on_the_way():
    result, overflows = run(graph_of(CONV, weights=[kernel(2.0**14, -(2.0**14))]), 4)
    assert not result.any()  # in FP32, and in FP16 where the order is lucky
    assert overflows == {"conv": 2.0**17}


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (helper.make_node("ReduceL2", ["x", "axes"], ["y"], name="sum"), [axes(1, 2, 3)]),
        (helper.make_node("LpNormalization", ["x"], ["y"], name="sum", axis=2), []),
        (helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="sum"), [axes(2, 3)]),
        (helper.make_node("GlobalAveragePool", ["x"], ["y"], name="sum"), []),
        (
            helper.make_node("InstanceNormalization", ["x", "ones", "ones"], ["y"], name="sum"),
            [numpy_helper.from_array(np.ones(2, np.float16), "ones")],
        ),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_sums_in_the_middle_of_a_layer_overflow(node, weights):
    """The result itself fits."""
    result, overflows = run(graph_of(node, weights=weights), 100)
    assert np.isfinite(result).all()
    assert list(overflows) == ["sum"]
    assert run(graph_of(node, weights=weights), 1)[1] == {}


def ones(*shape):
    return numpy_helper.from_array(np.ones(shape, np.float16), "ones")


AVERAGE = helper.make_node("AveragePool", ["x"], ["y"], name="sum", kernel_shape=[5, 5], pads=[2, 2, 2, 2])

POWERS = helper.make_node("LpPool", ["x"], ["y"], name="sum", kernel_shape=[5, 5], pads=[2, 2, 2, 2])


@pytest.mark.parametrize(
    ("node", "weights", "opset", "fits", "exceeds"),
    [
        (AVERAGE, [], 19, 2600, 2640),  # 25 terms
        (AVERAGE, [], 11, 2600, 2640),
        (POWERS, [], 18, 50, 52),  # 25 squares
        (POWERS, [], 11, 50, 52),
        (helper.make_node("LpPool", ["x"], ["y"], name="sum", kernel_shape=[2, 2], p=3), [], 18, 25, 26),
        (
            helper.make_node("LpPool", ["x"], ["y"], name="sum", kernel_shape=[5, 5], dilations=[2, 2]),
            *([], 18, 50, 52),
        ),
        (helper.make_node("GlobalLpPool", ["x"], ["y"], name="sum"), [], 13, 7.9, 8.1),
        (helper.make_node("LRN", ["x"], ["y"], name="sum", size=3), [], 13, 180, 182),  # 2 channels
        (helper.make_node("LRN", ["x"], ["y"], name="sum", size=3), [], 9, 180, 182),
        (helper.make_node("LRN", ["x"], ["y"], name="sum", size=1), [], 13, 255, 257),
        (helper.make_node("LayerNormalization", ["x", "ones"], ["y"], name="sum"), [ones(SIDE)], 17, 45, 46),
        (
            helper.make_node("LayerNormalization", ["x", "ones"], ["y"], name="sum", axis=2),
            *([ones(SIDE, SIDE)], 17, 7.9, 8.1),
        ),
        (
            helper.make_node("GroupNormalization", ["signed", "ones", "ones"], ["y"], name="sum", num_groups=1),
            *([ones(2)], 21, 5.6, 5.7),
        ),
        (helper.make_node("RMSNormalization", ["x", "ones"], ["y"], name="sum"), [ones(SIDE)], 23, 45, 46),
        (helper.make_node("MeanVarianceNormalization", ["signed"], ["y"], name="sum"), [], 13, 7.9, 8.1),
        (helper.make_node("Sum", ["x", "x", "minus"], ["y"], name="sum"), [], 19, 21e3, 22e3),
        (helper.make_node("Mean", ["x", "x", "minus"], ["y"], name="sum"), [], 19, 21e3, 22e3),
        (helper.make_node("Einsum", ["signed"], ["y"], name="sum", equation="bchw->bc"), [], 13, 63, 65),
        (helper.make_node("CumSum", ["signed", "axes"], ["y"], name="sum"), [axes(-1)], 14, 2040, 2060),
        (helper.make_node("GlobalAveragePool", ["x"], ["y"], name="sum"), [], 13, 63, 65),
        (helper.make_node("GlobalAveragePool", ["x"], ["y"], name="sum"), [], 9, 63, 65),
        (helper.make_node("ReduceSum", ["signed", "axes"], ["y"], name="sum"), [axes(2, 3)], 13, 63, 65),
        (helper.make_node("ReduceSum", ["signed"], ["y"], name="sum", axes=[2, 3]), [], 11, 63, 65),
        (helper.make_node("ReduceMean", ["x"], ["y"], name="sum", axes=[2, 3]), [], 13, 63, 65),
        (helper.make_node("ReduceL2", ["x"], ["y"], name="sum", axes=[3]), [], 11, 45, 46),
        (helper.make_node("InstanceNormalization", ["x", "ones", "ones"], ["y"], name="sum"), [ones(2)], 13, 7.9, 8.1),
    ],
    ids=lambda value: getattr(value, "op_type", None),
)
def test_sums_are_bounded_in_every_form_and_opset(node, weights, opset, fits, exceeds):
    """The result itself is small: the terms have one magnitude, or cancel."""
    sign = np.where(np.arange(SIDE) % 2, 1, -1).astype(np.float16)
    before = [
        helper.make_node("Mul", ["x", "sign"], ["signed"], name="signed"),
        helper.make_node("Neg", ["x"], ["minus"], name="minus"),
    ]
    model = graph_of(*before, node, weights=[*weights, numpy_helper.from_array(sign, "sign")], opset=opset)
    assert run(model, fits)[1] == {}
    result, overflows = run(model, exceeds)
    assert np.isfinite(result).all()
    assert list(overflows) == ["sum"]


def test_a_sum_before_and_after_scaling_is_found():
    """Nodes without a name are called after what they give."""
    factors = [
        numpy_helper.from_array(np.array(value, np.float16), name) for name, value in (("up", 2500), ("down", 1 / 2500))
    ]
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["large"]),
        helper.make_node("AveragePool", ["large"], ["mean"], kernel_shape=[5, 5]),
        helper.make_node("Mul", ["mean", "down"], ["y"]),
    ]
    result, overflows = run(graph_of(*nodes, weights=factors), 12)
    assert np.allclose(result, 12, rtol=1e-2)
    assert overflows == {"mean": 25 * 30000}


def body(kind, half=TensorProto.FLOAT16):
    """If or Loop, whose body squares `x` and so overflows beyond 255, and divides by it again."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["s"]), helper.make_node("Div", ["s", "x"], ["r"])]
    result = helper.make_tensor_value_info("r", half, None)
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    if kind == "If":
        branch = helper.make_graph(nodes, "branch", [], [result])
        return [helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=branch, else_branch=branch)]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    again = helper.make_node("Identity", ["go"], ["again"])
    told = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
    graph = helper.make_graph([*nodes, again], "body", [count, flag], [told, result])
    return [
        helper.make_node("Loop", ["once", "flag"], ["all"], name="choice", body=graph),
        helper.make_node("Squeeze", ["all", "axes"], ["y"], name="squeeze"),
    ]


FLAG = [
    numpy_helper.from_array(np.array(True), "flag"),
    numpy_helper.from_array(np.array(1, np.int64), "once"),
    axes(0),
]


@pytest.mark.parametrize("kind", ["If", "Loop"])
@pytest.mark.parametrize("exact", [False, True])
def test_bodies_that_compute_in_16_bits_are_refused(kind, exact):
    with pytest.raises(ExportError, match=rf"choice \({kind}\): .* cannot be checked, so nothing is proven") as caught:
        rounded_graph(graph_of(*body(kind), weights=FLAG), exact=exact)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_a_candidate_with_float_bodies_is_refused(kind):
    model = graph_of(*body(kind, TensorProto.FLOAT), weights=FLAG, half=TensorProto.FLOAT)
    with pytest.raises(ExportError, match="nothing is proven"):
        rounded_candidate(onnx.shape_inference.infer_shapes(model), "fp16", (), lambda _, weight: weight)


def test_bodies_in_fp32_or_of_integers_are_taken():
    wide = [helper.make_node("Cast", ["x"], ["w"], to=TensorProto.FLOAT, name="wide")]
    inside = body("If", TensorProto.FLOAT)
    for branch in inside[0].attribute:
        for node in branch.g.node:
            node.input[:] = ["w" if name == "x" else name for name in node.input]
    inside[0].output[0] = "v"
    short = helper.make_node("Cast", ["v"], ["y"], to=TensorProto.FLOAT16, name="short")
    result, overflows = run(graph_of(*wide, *inside, short, weights=FLAG), 300)
    assert set(result.ravel()) == {300}
    assert overflows == {}


def test_functions_of_the_file_are_watched():
    square = helper.make_function(
        *("own", "Square", ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"], name="mul")]),
        opset_imports=[helper.make_opsetid("", 19)],
    )
    model = graph_of(helper.make_node("Square", ["x"], ["y"], domain="own", name="call"))
    model.functions.append(square)
    model.opset_import.append(helper.make_opsetid("own", 1))
    assert run(model, 250)[1] == {}
    (peak,) = run(model, 300)[1].values()
    assert peak == np.inf


def test_constants_of_any_node_are_widened():
    shape = numpy_helper.from_array(np.array([1, 2, SIDE, SIDE], np.int64), "shape")
    third = numpy_helper.from_array(np.array([1 / 3], np.float16))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["c"], value=third, name="filled"),
        helper.make_node("EyeLike", ["plane"], ["eye"], dtype=TensorProto.FLOAT16, name="eye"),
        helper.make_node("Add", ["c", "eye"], ["d"], name="sum"),
        helper.make_node("Mul", ["x", "d"], ["y"], name="mul"),
    ]
    plane = numpy_helper.from_array(np.zeros((SIDE, SIDE), np.int64), "plane")
    result, _ = run(graph_of(*nodes, weights=[shape, plane]), 2)
    assert result[0, 0, 0, 1] == MASK(2 * np.float16(1 / 3))
    assert result[0, 0, 1, 1] == MASK(2 * np.float16(1 + np.float16(1 / 3)))


def test_subnormal_weights_are_lost():
    lost, _ = run(graph_of(CONV, weights=[kernel(6e-5, 6e-5)]), 1000)
    kept, _ = run(graph_of(CONV, weights=[kernel(7e-5, 7e-5)]), 1000)
    assert not lost.any()
    assert np.allclose(kept, 0.14, rtol=1e-2)


def test_a_file_whose_inputs_and_outputs_are_fp16():
    add = helper.make_node("Add", ["image", "image"], ["mask"], name="add")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 2, SIDE, SIDE]) for name in ("image", "mask")
    ]
    graph = helper.make_graph([add], "small", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    result, overflows = run(model, 1 + 2.0**-11)
    assert set(result.ravel()) == {2}
    assert overflows == {}
    assert run(model, 5e4)[1] == {"add": np.inf}


@pytest.mark.parametrize("graph", ["tensor", "frame"])
def test_rounding_is_no_milder_than_the_file(graph):
    """ONNX Runtime fuses layers and so rounds less often."""
    path = exported(precision="fp16", graph=graph)
    with open_model(checkpoint_file(), threads=1) as exact, open_model(path, threads=1) as file:
        model = RoundedModel(rounded_graph(onnx.load(path)), file.preprocess, file.postprocess)
        reports = [compare(exact, one, discs(), tolerance_for("fp16")) for one in (file, model)]
    assert all(reports), reports
    assert reports[0].mean_abs <= reports[1].mean_abs < 4 * reports[0].mean_abs
    assert model.overflow == ""


def test_a_candidate_of_the_search_is_what_its_export_will_be():
    """The whole network in FP16, and with parts in FP32, within what the places of casts change."""
    fp32 = onnx.shape_inference.infer_shapes(onnx.load(exported(precision="fp32", graph="tensor")))

    def kernels(_, weight):
        return rounded_kernels(torch.from_numpy(weight.copy()), torch.half).float().numpy()

    with open_model(checkpoint_file(), threads=1) as exact:
        for kept, options in (((), {"graph": "tensor"}), (("predict.encoder",), {"keep_fp32": ("predict.encoder",)})):
            file = exported(precision="fp16", **options)
            graphs = (rounded_graph(onnx.load(file)), rounded_candidate(fp32, "fp16", kept, kernels))
            models = [RoundedModel(graph, exact.preprocess, exact.postprocess) for graph in graphs]
            of_file, of_candidate = (compare(exact, model, discs(), tolerance_for("fp16")).mean_abs for model in models)
            assert 0.6 * of_file < of_candidate < 1.6 * of_file
