"""Files whose height and width are free: what is in them, that each size is right, and that other sizes are refused."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from basnet_export import onnx_export
from basnet_export.checks import other_sizes
from basnet_export.config import ExportConfig
from basnet_export.describe import describe
from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_export.graph.free_size import free_size
from basnet_export.onnx_export import export_onnx
from basnet_export.reference import Reference
from basnet_export.triton import TritonConfig, config_text
from basnet_runtime.manifest import METADATA_KEY, manifest_path, read_manifest
from basnet_runtime.open import open_model
from basnet_torch.checkpoint import model_from_checkpoint
from basnet_torch.errors import ParityError, UsageError
from tests.models import (
    OPENERS,
    SIZE,
    checkpoint_file,
    disc_checkpoint,
    disc_folder,
    discs,
    exported,
    fixed_graph,
    graph_made_before,
)

TENSOR = {"precision": "fp32", "graph": "tensor"}


def graph_of(*nodes, weights=()):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, 64, 64]) for n in ("image", "mask")]
    return helper.make_model(helper.make_graph(list(nodes), "small", ends[:1], ends[1:], list(weights)))


def values(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.ones(shape, dtype), name)


@pytest.mark.parametrize("options", [TENSOR, {"precision": "fp16", "graph": "tensor"}, {"store": "fp16"}])
def test_the_graph_holds_factors_and_no_sizes(options):
    graph = onnx.load(exported(**options)).graph
    for tensor, channels in ((graph.input[0], 3), (graph.output[0], 1)):
        axes = tensor.type.tensor_type.shape.dim
        assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", channels, "height", "width"]
    constants = {tensor.name for tensor in graph.initializer}
    assert not {"Shape", "Reshape", "BatchNormalization"} & {node.op_type for node in graph.node}
    for node in graph.node:
        if node.op_type == "Resize":
            assert node.input[2] in constants
            assert len(node.input) == 3


def test_the_receipt_has_the_validated_size_and_two_others():
    manifest = read_manifest(exported(**TENSOR))
    assert manifest.size == (SIZE, SIZE)
    assert set(manifest.parity["sizes"]) == {"128x64", "32x96"}
    assert all(found["passed"] and found["max_abs"] < 1e-4 for found in manifest.parity["sizes"].values())
    assert "proven at 64x64, takes multiples of 32" in str(describe(exported(**TENSOR)))


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (64, 160)])
def test_every_runtime_takes_every_multiple_of_32(opener, size):
    batch = np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)
    network = model_from_checkpoint(disc_checkpoint())
    with torch.no_grad():
        want = network.mask(torch.from_numpy(batch)).numpy()
    with opener(exported(**TENSOR), threads=1, keep=False) as backend:
        np.testing.assert_allclose(backend.infer(batch), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("opener", OPENERS)
def test_another_size_is_one_line(opener):
    with opener(exported(**TENSOR), threads=1, keep=False) as backend:
        with pytest.raises(
            UsageError, match="batch: size 50x64 does not fit: multiples of 32 are needed, the next are"
        ):
            backend.infer(np.zeros((1, 3, 50, 64), np.float32))
        with pytest.raises(UsageError, match=r"batch: 1x4x64x64, must be image float32 \?x3x\?x\?, \? any"):
            backend.infer(np.zeros((1, 4, 64, 64), np.float32))


def test_a_model_runs_at_the_size_that_is_asked():
    reference = Reference(disc_checkpoint(), discs()).at(96, 32)
    with open_model(exported(**TENSOR), size=(96, 32), threads=1) as model:
        assert model.backend.input.shape == (None, 3, 96, 32)
        assert reference.report(model, "fp32").max_abs < 1e-4
    with open_model(exported(**TENSOR), threads=1) as model:
        assert model.backend.input.shape == (None, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("path", "size", "reason"),
    [
        (lambda: exported(**TENSOR), (50, 64), "size 50x64 does not fit: multiples of 32"),
        (lambda: exported(precision="fp32", graph="frame"), (64, 64), "at 64x64: its size is not free"),
        (checkpoint_file, (64, 64), "only an .onnx takes one"),
        (lambda: None, (64, 96), None),
    ],
)
def test_a_size_that_cannot_be_is_refused_before_anything_runs(path, size, reason, tmp_path):
    made = path()
    if made is None:  # a file from before there was a choice
        made = tmp_path / "fixed.onnx"
        fixed_file(made)
        reason = "fixed.onnx at 64x96: its size is not free"
    with pytest.raises(UsageError, match=reason):
        open_model(made, size=size)


def fixed_file(path):
    """As earlier versions wrote it."""
    model, manifest = fixed_graph(), read_manifest(exported(**TENSOR))
    tensors = {name: manifest.at_its_size(getattr(manifest, name)) for name in ("input", "output")}
    old = replace(manifest, **tensors, onnx_sha256="", graph_sha256="")
    onnx.helper.set_model_props(model, {METADATA_KEY: old.to_json()})
    onnx.save(model, path)


def test_files_of_a_fixed_size_still_run(tmp_path):
    fixed_file(tmp_path / "fixed.onnx")
    with open_model(tmp_path / "fixed.onnx", threads=1) as old, open_model(exported(**TENSOR), threads=1) as new:
        for picture in discs():
            assert np.array_equal(old.mask(picture.image_HWC), new.mask(picture.image_HWC))


def test_it_runs_as_the_graph_of_a_fixed_file(tmp_path):
    """So that it is as fast: what ONNX Runtime makes of it has the same nodes, whether or not the size is told."""
    fixed_file(tmp_path / "fixed.onnx")
    kinds = []
    for path in (tmp_path / "fixed.onnx", exported(**TENSOR)):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        kinds.append(sorted(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node))
    assert kinds[0] == kinds[1]
    assert not {"Add", "Relu", "Reshape"} & set(kinds[1])


def test_an_engine_has_the_validated_size(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'")
    build_engine(BuildConfig(model=exported(**TENSOR), output=tmp_path / "a.plan", flavor="rtx", batch=(1, 2, 4)))
    record = json.loads(manifest_path(tmp_path / "a.plan").read_text())
    assert record["engine"]["profiles"][0]["best"] == [2, 3, SIZE, SIZE]
    assert record["input"]["shape"] == [None, 3, SIZE, SIZE]


def test_triton_is_told_the_validated_size(tmp_path):
    path = exported(**TENSOR)
    config = TritonConfig(sources=(path,), output=tmp_path)
    assert f"dims: [ 3, {SIZE}, {SIZE} ]" in config_text(config, [(path, read_manifest(path))])


@pytest.mark.parametrize(
    ("nodes", "weights", "free"),
    [
        ([helper.make_node("Relu", ["image"], ["mask"])], [], True),
        ([helper.make_node("Conv", ["image", "w"], ["mask"], pads=[1] * 4)], [values("w", 3, 3, 3, 3)], True),
        ([helper.make_node("Add", ["image", "b"], ["mask"])], [values("b", 1, 3, 1, 1)], True),
        ([helper.make_node("Add", ["image", "b"], ["mask"])], [values("b", 1, 3, 64, 64)], False),
        ([helper.make_node("Reshape", ["image", "s"], ["mask"])], [values("s", 4, dtype=np.int64)], False),
        ([helper.make_node("AveragePool", ["image"], ["mask"], kernel_shape=[64, 64])], [], False),
        ([helper.make_node("Resize", ["image", "", "f"], ["mask"])], [values("f", 4)], True),
        ([helper.make_node("Resize", ["image", "", "", "s"], ["mask"])], [values("s", 4, dtype=np.int64)], False),
        (
            [
                helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT),
                helper.make_node("Conv", ["image", "w"], ["mask"], pads=[1] * 4),
            ],
            [values("h", 3, 3, 3, 3, dtype=np.float16)],
            True,
        ),
    ],
)
def test_a_graph_that_holds_a_size_is_not_called_free(nodes, weights, free):
    model = graph_of(*nodes, weights=weights)
    assert free_size(model) == free
    names = [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert (names[2:] == ["height", "width"]) == free


def test_a_graph_that_holds_a_size_is_exported_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "free_size", lambda graph, traced=False: traced and free_size(graph, traced=True))
    path = export_onnx(ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", pictures=disc_folder()))
    assert read_manifest(path).input.shape == (None, 3, None, None)
    assert len(read_manifest(path).parity["sizes"]) == 2
    kinds = [sorted(node.op_type for node in onnx.load(p).graph.node) for p in (path, exported(**TENSOR))]
    assert kinds[0] == kinds[1]


def test_where_that_fails_the_size_stays_and_is_told(tmp_path, monkeypatch):
    made = graph_made_before()

    def graph(checkpoint, config, *, symbolic_size=False):
        if symbolic_size:
            raise torch.onnx.OnnxExporterError("it depends on the size")
        return made(checkpoint, config)

    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", graph)
    monkeypatch.setattr(onnx_export, "free_size", lambda graph, traced=False: False)
    said = []
    config = ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", pictures=disc_folder())
    manifest = read_manifest(export_onnx(config, said.append))
    assert manifest.input.shape == (None, 3, SIZE, SIZE)
    assert "sizes" not in manifest.parity
    assert "height and width are fixed at 64x64: it depends on the size" in said


def test_a_graph_that_is_right_at_one_size_only_is_refused(tmp_path, monkeypatch):
    """It adds what is nothing at the validated size."""
    made = graph_made_before()

    def graph(checkpoint, config, **_):
        model = made(checkpoint, config)
        last = model.graph.node[-1]
        logits, last.input[0] = last.input[0], "shifted"
        model.graph.initializer.append(numpy_helper.from_array(np.array(SIZE, np.float32), "size"))
        nodes = [
            helper.make_node("Shape", ["image"], ["shape"], start=2, end=3),
            helper.make_node("Cast", ["shape"], ["rows"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["rows", "size"], ["more"]),
            helper.make_node("Add", [logits, "more"], ["shifted"]),
        ]
        for node in nodes:
            model.graph.node.insert(len(model.graph.node) - 1, node)
        return model

    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", graph)
    monkeypatch.setattr(onnx_export, "free_size", lambda graph, traced=False: free_size(graph, traced=True))
    with pytest.raises(ParityError, match="at 128x64: fp32 parity with PyTorch FP64 fails"):
        export_onnx(ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", pictures=disc_folder()))
    assert not list(tmp_path.iterdir())


def test_a_session_of_another_tool_takes_320_by_320():
    """As rembg's `u2net_custom` feeds it: the first input, the first output, batch 1."""
    session = onnxruntime.InferenceSession(exported(**TENSOR), providers=["CPUExecutionProvider"])
    image = np.zeros((1, 3, 320, 320), np.float32)
    (mask,) = session.run(None, {session.get_inputs()[0].name: image})
    assert mask.shape == (1, 1, 320, 320)


def test_the_two_other_sizes_are_other_sizes():
    for size in ((32, 32), (64, 64), (256, 256), (256, 320), (32, 320)):
        larger, other = other_sizes(*size)
        assert len({size, larger, other}) == 3
        assert all(axis % 32 == 0 and axis >= 32 for axis in (*larger, *other))
