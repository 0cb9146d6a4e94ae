"""INT8 and FP8 from a checkpoint to a plan, by the real library; what they compute is shown in ONNX Runtime."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from basnet_export import onnx_export
from basnet_export.checks import check_graph
from basnet_export.config import ExportConfig
from basnet_export.describe import describe
from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_export.quantize import int8
from basnet_export.quantize.activation_ranges import observe, ranges_by
from basnet_export.quantize.fp8 import fp8_from_int8
from basnet_export.quantize.qdq import always_fp32, int8_from_onnx, quantized_tensors
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.machine.cpu_features import why_no_int8
from basnet_runtime.manifest import read_manifest
from basnet_runtime.open import open_model
from basnet_torch.errors import EngineBuildError, ExportError, UsageError
from tests.models import calibration_folder, checkpoint_file, discs, exported, graph_made_before, widened

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'")
FP32 = {"precision": "fp32", "graph": "tensor"}


def inputs():
    prepare = read_manifest(exported(**FP32)).preprocess.apply
    return [prepare(picture.image_HWC)[None] for picture in discs()]


@pytest.fixture(scope="module")
def graphs():
    """The same network in FP32, INT8 for TensorRT, INT8 for processors, and FP8."""
    fp32 = onnx.shape_inference.infer_shapes(onnx.load(exported(**FP32)))
    observed = observe(exported(**FP32), ({"image": each} for each in inputs()), quantized_tensors(fp32.graph))
    ranges = ranges_by("minmax", observed, symmetric=True)
    eight = int8_from_onnx(fp32, ranges, target="tensorrt", keep_fp32=())
    cpu = int8_from_onnx(fp32, ranges_by("minmax", observed, symmetric=False), target="cpu", keep_fp32=())
    frame = onnx.shape_inference.infer_shapes(onnx.load(exported(precision="fp32", graph="frame")))
    frames = int8_from_onnx(frame, ranges, target="tensorrt", keep_fp32=())
    return {"fp32": fp32, "int8": eight, "cpu": cpu, "fp8": fp8_from_int8(eight, fp32), "frame": frames}


def saved(graphs, kind, path, **changes):
    """The graph with its manifest, as an export would leave it; `frame` is INT8."""
    model = onnx.ModelProto()
    model.CopyFrom(graphs[kind])
    quantization = {
        "always_fp32": always_fp32(graphs["fp32"].graph, "tensorrt"),
        "target": "tensorrt",
        "method": "minmax",
        "pictures": 16,
        "int8_share": 0.99,
        **changes,
    }
    opset = next(each.version for each in model.opset_import if not each.domain)
    manifest = replace(
        read_manifest(exported(precision="fp32", graph="frame" if kind == "frame" else "tensor")),
        precision="int8" if kind in ("cpu", "frame") else kind,
        opset=opset,
        quantization=quantization,
        onnx_sha256="",
        parity=None,
    )
    onnx.helper.set_model_props(model, {"basnet": manifest.to_json()})
    check_graph(model, manifest)
    onnx.save(model, path)
    return path


def masks(path):
    with open_model(path) as model:
        return np.concatenate([model.infer([each[0]]) for each in inputs()])


def test_fp8_is_near_fp32_and_is_not_int8(graphs, tmp_path):
    onnx.checker.check_model(graphs["fp8"])
    truth = masks(exported(**FP32))
    found = {"fp8": masks(saved(graphs, "fp8", tmp_path / "fp8.onnx"))}
    if why_no_int8() is None:
        found["int8"] = masks(saved(graphs, "int8", tmp_path / "int8.onnx"))
    errors = {kind: float(np.abs(each - truth).mean()) for kind, each in found.items()}
    assert 0 < errors["fp8"] < 0.02
    assert errors["fp8"] != errors.get("int8")
    before = {tensor.name: tensor for tensor in graphs["int8"].graph.initializer}
    for tensor in graphs["fp8"].graph.initializer:
        assert tensor.data_type != onnx.TensorProto.INT8
        if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN and tensor.dims and len(tensor.dims) == 4:
            stored = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            assert list(before[tensor.name].dims) == list(tensor.dims)
            assert np.abs(stored).reshape(len(stored), -1).max(axis=1) == pytest.approx(448)


def test_fp8_batches_beside_each_other_have_its_masks(graphs, tmp_path):
    batches = inputs()[:4]
    with open_model(saved(graphs, "fp8", tmp_path / "fp8.onnx"), threads=2) as model:
        futures = [model.backend.submit(batch) for batch in batches]
        for batch, future in zip(batches, futures, strict=True):
            np.testing.assert_allclose(future.result(), model.backend.infer(batch), rtol=0, atol=1e-4)


def test_asymmetric_ranges_cannot_be_fp8(graphs):
    with pytest.raises(ExportError, match="FP8 has no zero point"):
        fp8_from_int8(graphs["cpu"], graphs["fp32"])


@pytest.mark.parametrize(("kind", "width"), [("int8", 16), ("int8", 64), ("fp8", 4), ("fp8", 64)])
def test_plans_are_built_and_their_share_is_proven(graphs, kind, width, tmp_path):
    source = saved(graphs, kind, tmp_path / f"{kind}.onnx")
    source = source if width == 4 else widened(source, width)
    plan = build_engine(BuildConfig(model=source, output=tmp_path / "a.plan", flavor="rtx", batch=(1, 4, 8)))
    manifest, facts = read_plan_manifest(plan)
    assert (manifest.precision, manifest.width, facts.typed_by) == (kind, width, "network")
    assert 0.9 < facts.typed_flops < 1  # the layers at the picture and at the logits are FP32
    assert manifest.quantization["always_fp32"]
    assert f"{kind}: {facts.typed_flops:.1%} of the convolutions' arithmetic" in str(describe(plan))


@pytest.mark.parametrize("width", [16, 64])
def test_int8_plans_take_frames_of_any_size(graphs, width, tmp_path):
    source = widened(saved(graphs, "frame", tmp_path / "frame.onnx"), width)
    sizes = {"height": (32, 720, 2160), "width": (32, 1280, 3840)}
    plan = build_engine(BuildConfig(model=source, output=tmp_path / "a.plan", flavor="rtx", batch=(1, 4, 8), **sizes))
    manifest, facts = read_plan_manifest(plan)
    assert (manifest.precision, manifest.graph, manifest.width) == ("int8", "frame", width)
    assert facts.profiles[0].best == (4, 720, 1280, 3)
    assert facts.profiles[0].largest == (8, 2160, 3840, 3)
    assert 0.9 < facts.typed_flops < 1
    assert manifest.quantization["always_fp32"]


def test_a_graph_for_processors_is_refused_with_the_command(graphs, tmp_path):
    source = saved(graphs, "cpu", tmp_path / "cpu.onnx", target="cpu")
    with pytest.raises(EngineBuildError, match=r"quantized for cpu; export it again with .*--target tens"):
        build_engine(BuildConfig(model=source, output=tmp_path / "a.plan", flavor="rtx"))
    assert not (tmp_path / "a.plan").exists()


def test_a_checkpoint_becomes_an_int8_engine_in_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", graph_made_before())
    monkeypatch.setattr(int8, "AUTO", ("minmax",))  # the others take longer, and are shown where ranges are
    plan = build_engine(
        BuildConfig(
            model=checkpoint_file(),
            output=tmp_path / "int8.plan",
            flavor="rtx",
            precision="int8",
            calibration=calibration_folder(),
            keep_fp32=(),
            check=False,
        )
    )
    manifest, facts = read_plan_manifest(plan)
    assert manifest.quantization["target"] == "tensorrt"
    assert manifest.quantization["pictures"] == 16
    assert facts.typed_flops == pytest.approx(manifest.quantization["int8_share"], abs=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8", "int8_target": "tensorrt"}, "fp8 needs --calibration"),
        ({"precision": "fp8", "calibration": "x"}, "precision fp8: no CPU computes in it; add --target tensorrt"),
        ({"precision": "fp16", "calibration": "x"}, "is for --precision int8 or fp8"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message):
        ExportConfig(checkpoint=checkpoint_file(), **options)
