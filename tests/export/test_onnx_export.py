"""Exported files: what is in the graph, that it is the checkpoint's model, and that nothing half-done stays."""

import errno
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from basnet_export import onnx_export
from basnet_export.checks import BATCHES, check_batches, check_graph, measure_parity
from basnet_export.config import ExportConfig
from basnet_export.graph import half_precision
from basnet_export.onnx_export import export_onnx
from basnet_export.reference import Reference
from basnet_export.samples import BUNDLED, load_pictures
from basnet_runtime.manifest import Manifest, manifest_path, read_manifest, sha256_of
from basnet_runtime.open import open_model
from basnet_runtime.parity import compare, tolerance_for
from basnet_torch.checkpoint import load_checkpoint, save_checkpoint
from basnet_torch.errors import ExportError, MediaError, ParityError, UsageError
from basnet_torch.spec import TensorSpec
from tests.models import (
    SIZE,
    checkpoint_file,
    disc_checkpoint,
    disc_folder,
    discs,
    exported,
    graph_made_before,
    needs_bf16,
    with_weights,
)

EXPORTS = [
    {"precision": "fp32", "graph": "tensor"},
    {"precision": "fp32", "graph": "frame"},
    {"precision": "fp16", "graph": "frame"},
    pytest.param({"precision": "bf16", "graph": "tensor"}, marks=needs_bf16),
]


@pytest.fixture(scope="module")
def reference():
    with open_model(checkpoint_file(), threads=1) as model:
        yield model


@pytest.mark.parametrize("options", EXPORTS, ids=lambda o: "-".join(o.values()))
def test_exported_file_keeps_the_contract(options, reference):
    path = exported(**options)
    with open_model(path, threads=1) as candidate:
        report = compare(reference, candidate, discs(), tolerance_for(options["precision"]))
    assert report, str(report)
    assert report.informative == len(discs())
    assert abs(report.max_f_change) < 0.01
    assert read_manifest(path).parity["passed"]


@pytest.mark.parametrize("options", EXPORTS, ids=lambda o: "-".join(o.values()))
def test_graph_is_bare(options):
    model = onnx.load(exported(**options))
    kinds = Counter(node.op_type for node in model.graph.node)
    assert "BatchNormalization" not in kinds
    assert kinds["Conv"] == 81  # 87 of the network less the six pruned side outputs
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert "/" not in model.producer_name + model.doc_string
    check_graph(model, read_manifest(exported(**options)))


def test_types_in_the_graph():
    """FP16 means weights and activations; only the edges are FP32."""
    model = onnx.shape_inference.infer_shapes(onnx.load(exported(precision="fp16", graph="frame")))
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    made = {node.op_type: {types[name] for name in node.output} for node in model.graph.node}
    for kind in ("Conv", "Relu", "MaxPool"):
        assert made[kind] == {onnx.TensorProto.FLOAT16}
    assert made["Sigmoid"] == {onnx.TensorProto.FLOAT}


def test_bytes_are_touched_by_casts_only():
    """What TensorRT accepts: the first operation on uint8 is a cast, and the last one before the output."""
    graph = onnx.load(exported(precision="fp16", graph="frame")).graph
    readers = [node for node in graph.node if "frame" in node.input]
    assert [node.op_type for node in readers] == ["Cast"]
    assert graph.node[0].op_type == "Cast"
    last = next(node for node in graph.node if "mask" in node.output)
    assert last.op_type == "Cast"
    assert next(node for node in graph.node if last.input[0] in node.output).op_type == "Clip"


@pytest.mark.parametrize("shape", [(40, 72), (150, 33)])
def test_frame_graph_takes_any_size(shape, reference):
    image = np.ascontiguousarray(np.resize(discs()[0].image_HWC, (*shape, 3)))
    with open_model(exported(precision="fp32", graph="frame"), threads=1) as model:
        mask = model.mask(image)
    assert mask.shape == shape
    assert np.abs(mask - reference.mask(image)).max() <= 0.5 / 255 + 1e-4


def test_authors_recipe_is_per_picture():
    """Largest value and stretch are each picture's own, also within a batch, and an empty map stays empty."""
    dark = (discs()[1].image_HWC // 3).astype(np.uint8)
    black = np.zeros_like(dark)
    images = [discs()[0].image_HWC, dark, black]
    with (
        open_model(checkpoint_file(authors_recipe=True), threads=1) as reference,
        open_model(exported(authors_recipe=True, graph="frame"), threads=1) as model,
    ):
        raw = model.infer([model.prepare(image) for image in images])
        for image, one in zip(images, raw, strict=True):
            mask = model.postprocessor().undecided(one, *image.shape[:2])
            assert np.abs(mask - reference.mask(image)).max() <= 0.5 / 255 + 2e-4


def test_batches_of_other_sizes_are_refused_when_they_mix(tmp_path):
    """A graph that subtracts the batch's mean is caught."""
    model = onnx.load(exported(precision="fp32", graph="tensor"))
    sigmoid = model.graph.node[-1]
    axes = onnx.numpy_helper.from_array(np.array([0], np.int64), "axes")
    model.graph.initializer.append(axes)
    logits = sigmoid.input[0]
    sigmoid.input[0] = "centered"
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("ReduceMean", [logits, "axes"], ["mean"]))
    model.graph.node.insert(len(model.graph.node) - 1, onnx.helper.make_node("Sub", [logits, "mean"], ["centered"]))
    path = tmp_path / "mixed.onnx"
    onnx.save(model, path)
    with pytest.raises(ParityError, match="in a batch of 2"):
        check_batches(path, read_manifest(path), discs())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", BATCHES)
def test_every_batch_gives_the_same_masks(backend, size):
    with open_model(exported(precision="fp32", graph="tensor"), backend=backend, threads=1) as model:
        prepared = [model.prepare(discs(count=7)[i].image_HWC) for i in range(size)]
        alone = np.concatenate([model.infer([one]) for one in prepared])
        np.testing.assert_allclose(model.infer(prepared), alone, rtol=0, atol=1e-5)


def test_size_is_taken_and_kept(tmp_path):
    config = ExportConfig(checkpoint=checkpoint_file(), size=(32, 96), output=tmp_path / "wide.onnx", check=False)
    manifest = read_manifest(export_onnx(config))
    assert manifest.input == TensorSpec(name="image", dtype="float32", shape=(None, 3, None, None))
    assert manifest.size == (32, 96)


def large_kernel_bytes(path):
    """Of the kernels that are worth a cast: names, nodes and small tensors take the same room in both files."""
    tensors = [t for t in onnx.load(path).graph.initializer if len(t.dims) == 4 and np.prod(t.dims) >= 4096]
    return sum(len(tensor.raw_data) for tensor in tensors)


def test_fp16_storage_halves_the_kernels_and_is_the_same_model(reference):
    whole, half = exported(precision="fp32", graph="tensor"), exported(store="fp16")
    assert 0 < large_kernel_bytes(half) == large_kernel_bytes(whole) / 2
    assert read_manifest(half).store == "fp16"
    for backend in ("onnxruntime", "openvino"):
        with open_model(half, backend=backend, threads=1) as candidate:
            report = compare(reference, candidate, discs(), tolerance_for("fp32"))
        assert report, str(report)


def test_fp16_storage_refuses_weights_it_would_change(tmp_path):
    path = tmp_path / "fine.pth"
    save_checkpoint(path, with_weights(disc_checkpoint(), lambda _, v: v * 1.0001 if v.is_floating_point() else v))
    with pytest.raises(ExportError, match="not exact in FP16"):
        export_onnx(ExportConfig(checkpoint=path, store="fp16"))
    assert list(tmp_path.iterdir()) == [path]


def _scaled(name, values):
    return values * np.float32(1.02) if name.endswith("refine.output.weight") else values


def _not_finite(name, values):
    return np.full_like(values, np.nan) if name.endswith("refine.output.bias") else values


def _empty(name, values):
    return values * np.float32(0) if name.endswith(("refine.output.weight", "refine.output.bias")) else values


@pytest.mark.parametrize(("damage", "reason"), [(_scaled, "max_abs is"), (_not_finite, "nan"), (_empty, "max_abs is")])
def test_a_damaged_graph_leaves_no_file(damage, reason, tmp_path, monkeypatch):
    """The checks run on the file itself: weights that change on the way are found, and nothing is left."""
    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", graph_made_before(damage))
    config = ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "bad.onnx", pictures=disc_folder())
    with pytest.raises(ParityError, match=reason) as caught:
        export_onnx(config)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_flat_masks_prove_nothing(tmp_path, monkeypatch):
    """Constant masks agree in every pixel, and are still not passed."""
    last = ("refine.output.weight", "refine.output.bias", "convs.stage1.weight", "convs.stage1.bias")
    path = tmp_path / "flat.pth"
    save_checkpoint(path, with_weights(disc_checkpoint(), lambda name, v: v * 0 if name.endswith(last) else v))
    flat = graph_made_before(lambda name, v: v * np.float32(0) if name.endswith(last) else v)
    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", flat)
    with pytest.raises(ParityError, match="not proven: the reference masks are flat"):
        export_onnx(ExportConfig(checkpoint=path, pictures=disc_folder()))
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", graph_made_before())
    path = tmp_path / "model.onnx"
    path.write_bytes(b"precious")
    config = ExportConfig(checkpoint=checkpoint_file(), output=path, check=False)
    with pytest.raises(UsageError, match="--overwrite"):
        export_onnx(config)
    assert path.read_bytes() == b"precious"
    export_onnx(replace(config, overwrite=True))
    assert read_manifest(path).onnx_sha256 == sha256_of(path)
    assert manifest_path(path).is_file()


def test_graph_check_names_what_is_wrong():
    path = exported(precision="fp32", graph="tensor")
    manifest = read_manifest(path)
    with pytest.raises(ExportError, match="do not compute in fp16"):
        check_graph(onnx.load(path), replace(manifest, precision="fp16"))
    dangling = onnx.load(path)
    dangling.graph.node.append(onnx.helper.make_node("Neg", ["image"], ["left_over"]))
    with pytest.raises(ExportError, match="never used, such as left_over"):
        check_graph(dangling, manifest)
    with pytest.raises(ExportError, match="has axes"):
        check_graph(onnx.load(path), replace(manifest, output=replace(manifest.output, shape=(None, 1, SIZE, 32))))


def test_pictures_must_be_there(tmp_path):
    for folder, reason in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no pictures")):
        with pytest.raises(UsageError, match=reason):
            load_pictures(folder)
    assert [picture.name for picture in load_pictures()] == [
        "astronaut.jpg",
        "camera.jpg",
        "chelsea.jpg",
        "coffee.jpg",
        "rocket.jpg",
    ]
    assert all(path.stat().st_size <= 40_000 for path in BUNDLED.iterdir())


def test_receipt_says_what_ran():
    path = exported(precision="fp32", graph="tensor")
    receipt = measure_parity(
        path, read_manifest(path), Reference(load_checkpoint(checkpoint_file()), discs())
    ).receipt()
    assert receipt["ran"].startswith("ONNX Runtime")
    assert receipt["pictures"] == 4


def test_no_graph_without_its_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "onnx_from_checkpoint", graph_made_before())
    path = tmp_path / "model.onnx"
    path.write_bytes(b"precious")
    config = ExportConfig(checkpoint=checkpoint_file(), output=path, check=False, overwrite=True)
    manifest_path(path).mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        export_onnx(config)
    manifest_path(path).rmdir()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Manifest, "to_json", full)
    monkeypatch.setattr(onnx_export, "_save", lambda graph, manifest, path: onnx.save(graph, path))
    with pytest.raises(MediaError, match=r"model\.onnx\.json: cannot be written: no space left on device"):
        export_onnx(config)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_relu_of_fp16_files_is_fused_on_a_cpu(tmp_path):
    """At opset 18 ONNX Runtime makes a Max of each Relu and fuses none: 1.14 times the CPU time of FP32."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for axis in ("height", "width"):
        options.add_free_dimension_override_by_name(axis, SIZE)
    onnxruntime.InferenceSession(
        exported(precision="fp16", graph="tensor"), options, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert any("Conv" in kind for kind in kinds)
    assert not {"Max", "Relu"} & set(kinds)


def test_nodes_that_read_the_same_value_have_names_of_their_own():
    """In DenseNet each layer's Concat begins with the same map."""
    nodes = [
        onnx.helper.make_node("Conv", ["image", "network.e.first.weight"], ["a"]),
        onnx.helper.make_node("Concat", ["a", "image"], ["b"], axis=1),
        onnx.helper.make_node("Conv", ["b", "network.e.second.weight"], ["c"]),
        onnx.helper.make_node("Concat", ["a", "c", "b"], ["mask"], axis=1),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.zeros((4, channels, 1, 1), np.float32), f"network.e.{name}.weight")
        for name, channels in (("first", 4), ("second", 8))
    ]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 4, 8, 8])
    mask = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1, 16, 8, 8])
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "dense", [image], [mask], weights))
    graph = ir.from_proto(model).graph
    onnx_export._name_nodes(graph)
    assert [node.name for node in graph] == ["e.first", "e.first.concat", "e.second", "e.first.concat.2"]


def test_a_batch_norm_before_its_convolution_becomes_scale_and_shift():
    """In DenseNet an activation keeps it from being folded."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().double()
    for norm in (network[0], network[3]):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    deployed = half_precision.deployed_network(network, "fp32")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert torch.allclose(deployed(image.float()).double(), network(image), atol=1e-5)
