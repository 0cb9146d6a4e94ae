"""INT8 files: what is in them, what they are calibrated on, and which layers the search keeps in FP32."""

import re
import time
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import onnx
import pytest

from basnet_export.checks import check_graph
from basnet_export.config import ExportConfig
from basnet_export.graph.fp32_layer_search import search_fp32_layers
from basnet_export.onnx_export import export_onnx
from basnet_export.quantize.activation_ranges import Method, Observed, ranges_by
from basnet_export.quantize.calibration import calibration_pictures, warning_for
from basnet_export.quantize.cross_layer_equalization import equalized
from basnet_export.quantize.int8 import best_by_stage
from basnet_export.quantize.qdq import always_fp32, int8_from_onnx, nodes_of, quantized_tensors
from basnet_runtime.machine.cpu_features import why_no_int8
from basnet_runtime.manifest import read_manifest
from basnet_runtime.media.image.pictures import read_picture, write_picture
from basnet_runtime.open import open_model
from basnet_runtime.parity import ParityReport, compare, tolerance_for
from basnet_torch.errors import UsageError
from tests.export.graph.test_architectures import trained
from tests.models import checkpoint_file, disc_folder, discs, draw_discs, fixed_graph, needs_int8

LARGE = discs(size=200)  # whose boundaries are not a pixel or two wide


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for index, image in enumerate(draw_discs(20, size=64, seed=3)[0]):
        write_picture(folder / f"{index:02}.png", image)
    return folder


@pytest.fixture(scope="module")
def fp32():
    return fixed_graph()


@pytest.fixture(scope="module")
def int8_file(calibration, tmp_path_factory):
    if why_no_int8():
        pytest.skip(why_no_int8())
    folder = tmp_path_factory.mktemp("int8")
    for picture in LARGE:
        write_picture(folder / "pictures" / f"{picture.name}.png", picture.image_HWC)
    kept = ("predict.encoder.stage1", "predict.encoder.stage2")
    options = {"graph": "frame", "keep_fp32": kept, "pictures": folder / "pictures"}
    return export_onnx(config(calibration, folder / "discs.onnx", **options))


def config(calibration, output, **options):
    return ExportConfig(
        output=output,
        precision="int8",
        calibration=calibration,
        **{"checkpoint": checkpoint_file(), "calibration_method": "mse", **options},
    )


def flat_ranges(graph):
    return dict.fromkeys(quantized_tensors(graph), (-1.0, 2.0))


def test_file_keeps_the_contract_and_says_how_it_was_made(int8_file):
    manifest = read_manifest(int8_file)
    assert manifest.precision == "int8"
    assert manifest.parity["passed"]
    facts = manifest.quantization
    assert (facts["target"], facts["method"], facts["pictures"], facts["seed"]) == ("cpu", "mse", 20, 0)
    assert 0.5 <= facts["int8_share"] < 1
    assert manifest.keep_fp32 == ("predict.encoder.stage1", "predict.encoder.stage2")
    assert len(facts["pictures_sha256"]) == 64
    with open_model(checkpoint_file(), threads=1) as reference, open_model(int8_file, threads=1) as candidate:
        report = compare(reference, candidate, LARGE, tolerance_for("int8"))
        assert ", int8, " in candidate.backend.description
    assert report, str(report)
    assert report.max_abs > 1e-4  # a file that is FP32 in truth would pass as well


@needs_int8
def test_openvino_runs_it_alike(int8_file):
    with (
        open_model(int8_file, threads=1) as first,
        open_model(int8_file, threads=1, backend="openvino") as second,
    ):
        difference = np.abs(first.mask(discs()[0].image_HWC) - second.mask(discs()[0].image_HWC))
        assert "int8" in second.backend.description
    assert difference.mean() < 1e-2


@needs_int8
def test_for_openvino_only_what_convolutions_read_is_quantized(calibration, tmp_path):
    for picture in LARGE:
        write_picture(tmp_path / "pictures" / f"{picture.name}.png", picture.image_HWC)
    options = {"int8_target": "openvino", "keep_fp32": ("predict.encoder.stage1",), "pictures": tmp_path / "pictures"}
    path = export_onnx(config(calibration, tmp_path / "a.onnx", **options))
    model = onnx.load(path)
    readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def kinds(name):
        """Of the layers that read it, through what joins and pools it."""
        through = [kinds(n.output[0]) if n.op_type in ("Concat", "MaxPool") else {n.op_type} for n in readers[name]]
        return set().union(*through)

    made = [node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(made) > 100
    assert all(kinds(name) == {"Conv"} for name in made)
    zero_points = {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    types = {t.data_type for t in model.graph.initializer if t.name in zero_points}
    assert types == {onnx.TensorProto.UINT8}
    assert read_manifest(path).parity["passed"]
    with open_model(path, threads=1) as candidate, open_model(checkpoint_file(), threads=1) as reference:
        assert "OpenVINO" in candidate.backend.description
        assert "int8" in candidate.backend.description
        assert compare(reference, candidate, LARGE, tolerance_for("int8")).max_abs > 1e-4
    with pytest.raises(UsageError, match="quantized for OpenVINO, and other kernels would compute it in FP32"):
        open_model(path, backend="onnxruntime")


@needs_int8
def test_fp32_layers_stored_as_fp16_give_the_masks_of_the_same_weights_in_fp32(calibration, tmp_path):
    kept = ("predict.encoder.stage4", "predict.encoder.stage5")
    options = {"int8_target": "openvino", "keep_fp32": kept, "check": False}
    plain, half = (
        export_onnx(config(calibration, tmp_path / f"{store}.onnx", store=store, **options))
        for store in ("fp32", "fp16")
    )
    assert half.stat().st_size < plain.stat().st_size
    facts = [read_manifest(path).quantization for path in (plain, half)]
    assert facts[1] == {**facts[0], "fp32_stored_as": "fp16"}
    model, before = onnx.load(half), {t.name: t for t in onnx.load(plain).graph.initializer}
    check_graph(model, read_manifest(half))
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type in ("Cast", "Mul")]:  # as runtimes do at load
        whole = values[node.input[0]].astype(np.float32)
        values[node.output[0]] = whole * values[node.input[1]] if node.op_type == "Mul" else whole
        model.graph.node.remove(node)
    folded = [name for name in before if name in values and f"{name}.fp16" in values]
    assert len(folded) > 8
    for name in folded:
        np.testing.assert_allclose(values[name], onnx.numpy_helper.to_array(before[name]), rtol=1e-6)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(values[name], name) for name in folded)
    model.metadata_props[0].value = read_manifest(plain).to_json()
    onnx.save(model, tmp_path / "folded.onnx")
    with open_model(half, threads=1) as first, open_model(tmp_path / "folded.onnx", threads=1) as second:
        masks = [[one.mask(picture.image_HWC) for picture in discs()] for one in (first, second)]
    assert np.ptp(masks[0]) > 0.5
    assert np.array_equal(*masks)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_only_files_for_openvino_store_fp32_layers_as_fp16(calibration, target):
    with pytest.raises(UsageError, match=f"store fp16 with target {target}"):
        config(calibration, None, int8_target=target, store="fp16")


def test_unsigned_for_processors_signed_for_tensorrt(fp32):
    types = {}
    for target in ("cpu", "tensorrt"):
        graph = int8_from_onnx(fp32, flat_ranges(fp32.graph), target=target, keep_fp32=()).graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
        types[target] = {onnx.TensorProto.DataType.Name(zero.data_type) for zero in zeros}
        symmetric = all(not np.any(onnx.numpy_helper.to_array(zero)) for zero in zeros)
        assert symmetric == (target == "tensorrt")
    assert types == {"cpu": {"UINT8"}, "tensorrt": {"INT8"}}


def test_weights_have_a_scale_per_channel(fp32):
    graph = int8_from_onnx(fp32, flat_ranges(fp32.graph), target="cpu", keep_fp32=()).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [
        (constants[node.input[0]], constants[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants and len(constants[node.input[0]].dims) == 4
    ]
    assert len(weights) == 81 - len(always_fp32(fp32.graph, "cpu"))
    assert all(list(scale.dims) == [weight.dims[0]] for weight, scale in weights)


def test_processors_get_no_float_between_layers(fp32, tmp_path):
    """ONNX Runtime fuses every quantized layer; what is left in float are the ends and the enlarging."""
    import onnxruntime as ort

    graph = int8_from_onnx(fp32, flat_ranges(fp32.graph), target="cpu", keep_fp32=())
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 81 - len(always_fp32(fp32.graph, "cpu"))
    assert kinds["QLinearConcat"] == 10
    assert kinds["QLinearAdd"] == 22  # not the sum of the logits
    assert kinds["Relu"] == 0


def test_parts_stay_fp32_by_name(fp32):
    nodes = nodes_of(fp32.graph, ["predict.encoder.stage1"])
    assert "predict.encoder.stage1.0.conv1" in nodes
    assert all(node.startswith("predict.encoder.stage1.") for node in nodes)
    graph = int8_from_onnx(fp32, flat_ranges(fp32.graph), target="cpu", keep_fp32=["predict.encoder.stage1"]).graph
    constants = {tensor.name for tensor in graph.initializer}
    kept = {node.name for node in graph.node if node.op_type == "Conv" and node.input[1] in constants}
    assert kept == {*always_fp32(fp32.graph, "cpu"), *(node for node in nodes if node in parts_nodes(fp32.graph))}
    with pytest.raises(UsageError, match=r"keep-fp32 stage9: .* predict"):
        nodes_of(fp32.graph, ["stage9"])


def parts_nodes(graph):
    return {node.name for node in graph.node if node.op_type == "Conv"}


def test_calibration_wants_real_pictures_and_enough(calibration, tmp_path):
    with pytest.raises(UsageError, match="--calibration"):
        ExportConfig(checkpoint=checkpoint_file(), precision="int8")
    with pytest.raises(UsageError, match="not fp32"):
        ExportConfig(checkpoint=checkpoint_file(), calibration=calibration)
    with pytest.raises(UsageError, match="4 pictures, and INT8 needs at least 16"):
        calibration_pictures(disc_folder())
    with pytest.raises(UsageError, match="no such"):
        calibration_pictures(tmp_path / "none")
    assert "20 pictures" in warning_for(20)
    assert warning_for(100) is None


def test_calibration_draws_the_same_pictures_every_time(calibration):
    names = [[picture.name for picture in calibration_pictures(calibration, count=16, seed=s)] for s in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert names[0] == sorted(names[0])


def test_ranges_cut_outliers_but_for_minmax():
    values = np.random.default_rng(0).normal(0, 1, (200_000, 1)).astype(np.float32)
    values[0] = 20
    observed = {"x": Observed(low_C=values.min(0), high_C=values.max(0), sample_SC=values)}
    highest = {method: ranges_by(method, observed, symmetric=False)["x"][1] for method in get_args(Method)}
    assert highest["minmax"] == 20
    assert 5 < highest["mse"] < 18
    assert highest["percentile"] < 20


class Bench:
    """Holds the contract once `needed` parts are FP32; each other part's noise is its place in the list."""

    def __init__(self, parts, needed):
        self.parts, self.needed, self.judged = list(parts), set(needed), []

    def distance(self, kept):
        return sum(index for index, part in enumerate(self.parts) if part not in kept) / 100

    def report(self, kept):
        self.judged.append(tuple(kept))
        flips = 0.0 if self.needed <= set(kept) else 0.5
        return ParityReport(
            tolerance=tolerance_for("int8"), pictures=1, informative=1, max_abs=0, mean_abs=0, p999_abs=0,
            flips=flips, boundary_iou=1.0, worst={"flips": "a.png"},
        )  # fmt: skip


def test_search_keeps_the_fewest_that_hold():
    parts = {f"part{i}.conv": 0.05 for i in range(8)}
    found = search_fp32_layers(parts, Bench(parts, {"part7.conv", "part5.conv"}), seconds=60)
    assert found.kept == ("part7.conv", "part6.conv", "part5.conv")  # by noise, without gaps
    assert found.noise["part7"] > found.noise["part1"]
    assert search_fp32_layers(parts, Bench(parts, ()), seconds=60).kept == ()


def test_single_layers_of_what_stays_are_reduced_where_the_contract_holds_without_them():
    parts = {f"stage.{i}": 0.1 for i in range(4)}
    pieces = {f"{part}.{layer}": share for part in parts for layer, share in (("conv1", 0.06), ("conv2", 0.04))}

    class ByLayer(Bench):
        def report(self, kept):
            return super().report([p for p in pieces if any(p == k or p.startswith(f"{k}.") for k in kept)])

    bench = ByLayer(parts, {"stage.2.conv1", "stage.3.conv2"})
    assert set(search_fp32_layers(parts, bench, seconds=60, pieces=pieces).kept) == {"stage.2.conv1", "stage.3.conv2"}


def test_search_ends_where_a_file_would_not_be_int8():
    parts = {f"part{i}.conv": 0.3 for i in range(4)}
    found = search_fp32_layers(parts, Bench(parts, {"part0.conv"}), seconds=60)
    assert not found.report
    assert found.kept == ()
    assert re.match(r"FP32 layers: no set of part3.conv keeps the contract, the nearest is int8 parity", found.failure)


def test_without_time_the_earliest_layers_are_kept():
    parts = {f"predict.encoder.stage{i}.0": 0.1 for i in range(1, 5)}
    assert search_fp32_layers(parts, Bench(parts, {"predict.encoder.stage1.0"}), seconds=0).kept == tuple(parts)[:1]


def test_file_is_named_after_its_target():
    made = ExportConfig(checkpoint=checkpoint_file(), precision="int8", calibration=disc_folder())
    assert made.target.name == "discs-int8.onnx"
    assert replace(made, int8_target="tensorrt").target.name == "discs-int8-tensorrt.onnx"


def test_each_stage_takes_the_method_that_moves_masks_least_when_it_alone_is_int8():
    asked = []

    class Judge:
        def distance(self, kept):
            asked.append((self.method, tuple(kept)))
            return float(("refine.up1" in kept) == (self.method == "mse"))  # mse suits the refinement alone

    parts = ("predict.encoder.stage1.0", "predict.encoder.stage2.0", "refine.up1")
    assert best_by_stage(Judge(), ["mse", "minmax"], parts, time.monotonic() + 60) == {
        "predict.encoder.stage1": "minmax",
        "predict.encoder.stage2": "minmax",
        "refine": "mse",
    }
    assert ("mse", ("predict.encoder.stage2.0", "refine.up1")) in asked
    assert best_by_stage(Judge(), ["mse", "minmax"], parts, time.monotonic() - 1) is None


def test_masks_beside_their_pictures_calibrate_nothing(calibration, tmp_path):
    for picture in calibration.iterdir():
        image = read_picture(picture).image_HWC
        write_picture(tmp_path / f"{picture.stem}.jpg", image)
        write_picture(tmp_path / f"{picture.stem}.png", (image[..., 0] > 99) * np.uint8(255))
    assert {picture.name for picture in calibration_pictures(tmp_path)} == {f"{i:02}.jpg" for i in range(20)}


def test_convolutions_without_a_bias_are_equalized(fp32):
    bare = onnx.ModelProto.FromString(fp32.SerializeToString())
    convolutions = [node for node in bare.graph.node if node.op_type == "Conv"]
    for node in convolutions:
        del node.input[2:]
    shares = {node.output[0]: np.full(kernel_shape(bare, node)[0], 0.5, np.float32) for node in convolutions[1:3]}
    scaled = {node.name: node for node in equalized(bare, shares).graph.node}
    assert all(len(scaled[node.name].input) == 2 for node in convolutions)


def kernel_shape(model, node):
    return next(tensor.dims for tensor in model.graph.initializer if tensor.name == node.input[1])


@pytest.mark.parametrize("target", ["cpu", "openvino", "tensorrt"])
def test_maps_of_several_depths_are_joined_as_floats_or_each_over_a_range_of_its_own(target, calibration, tmp_path):
    """HED enlarges maps of one channel and joins them; one range for all of them would be too coarse for most."""
    path = trained("hed", tmp_path / "hed.pth", steps=2)
    out = export_onnx(
        config(calibration, tmp_path / "a.onnx", checkpoint=path, int8_target=target, keep_fp32=(), check=False)
    )
    made = {output: node for node in onnx.load(out).graph.node for output in node.output}
    joined = next(node for node in made.values() if node.op_type == "Concat")
    parts = [made[name] for name in joined.input]
    if target == "openvino":
        model = onnx.load(out)
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        steps = [constants[made[part.input[0]].input[1]] for part in parts]
        assert all(step.shape == (1,) for step in steps)
        assert len({float(step[0]) for step in steps}) > 1
    else:
        assert {part.op_type for part in parts} <= {"Conv", "Resize"}
    if why_no_int8():
        pytest.skip(f"written, but not run: {why_no_int8()}")
    with open_model(out, backend="openvino" if target == "openvino" else "onnxruntime") as model:
        assert all(np.isfinite(model.mask(picture.image_HWC)).all() for picture in discs()[:2])
