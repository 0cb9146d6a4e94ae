"""FP16 and bf16 networks with parts in FP32: in the file, in the manifest, and found when the contract asks."""

from dataclasses import replace
from functools import partial

import onnx
import pytest
import torch

from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_export.quantize import fp16_layer_search
from basnet_export.quantize.fp16_emulation import RoundedModel, rounded_graph
from basnet_export.reference import Reference
from basnet_export.samples import load_pictures
from basnet_runtime.manifest import read_manifest
from basnet_runtime.parity import tolerance_for
from basnet_torch.checkpoint import save_checkpoint
from basnet_torch.errors import ParityError, UsageError
from tests.models import checkpoint_file, disc_checkpoint, disc_folder, discs, exported, with_weights

BLOCK = "predict.encoder.stage1.1"


def weight_types(path):
    model = onnx.load(path)
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    return {node.name: types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


def changed(change):
    """The discs' checkpoint with other weights in one block: `change` takes the part of the name behind the block's."""
    return with_weights(
        disc_checkpoint(), lambda name, v: change(name.partition(f"{BLOCK}.")[2], v) if BLOCK in name else v
    )


def scaled(factor):
    """Values between the block's convolutions grow by a factor, which the second one takes away: the same function."""

    def change(name, value):
        if name in ("norm1.weight", "norm1.bias"):
            return value * factor
        return value / factor if name == "conv2.weight" else value

    return changed(change)


def cancelling():
    """Two equal channels are multiplied by 2^14 and -2^14: the sum is small, and on the way to it large."""

    def change(name, value):
        if name == "conv2.weight":
            value[:, 1] = value[:, 0]
            value[:, :2, 1, 1] = torch.tensor((2.0**14, -(2.0**14)))
        elif name.startswith(("conv1", "norm1")) and value.ndim:
            value[1] = value[0]
        return value

    return changed(change)


def folded():
    """Weights that only batch norm makes large: tiny values before them, and a tiny deviation after them."""

    def change(name, value):
        if name in ("norm1.weight", "norm1.bias"):
            return value / 2.0**17
        if name == "conv2.weight":
            return value * 2.0**12
        if name == "norm2.running_mean":
            return value / 2.0**5
        return (value + 1e-5) / 2.0**10 - 1e-5 if name == "norm2.running_var" else value

    return changed(change)


FAULTS = {
    "overflows beyond what a CPU shows": partial(scaled, 2.0**14),
    "overflows by far": partial(scaled, 1e6),
    "weights are subnormal": partial(scaled, 2.0**11),
    "a sum overflows on the way": cancelling,
    "folded weights overflow": folded,
}


@pytest.fixture(params=FAULTS, ids=lambda name: name.replace(" ", "-"))
def faulty(request, tmp_path):
    path = tmp_path / "faulty.safetensors"
    save_checkpoint(path, FAULTS[request.param]())
    return path


def test_named_parts_stay_fp32_and_the_others_do_not():
    path = exported(precision="fp16", keep_fp32=(BLOCK, "refine.up1"))
    types = weight_types(path)
    kept = {name for name, kind in types.items() if kind == "FLOAT"}
    assert kept == {f"{BLOCK}.conv1", f"{BLOCK}.conv2", "refine.up1.conv"}
    assert {kind for name, kind in types.items() if name not in kept} == {"FLOAT16"}
    assert read_manifest(path).keep_fp32 == (BLOCK, "refine.up1")
    assert read_manifest(path).parity["passed"]


@pytest.mark.parametrize("graph", ["tensor", "frame"])
def test_fp32_parts_read_each_other_without_rounding(graph, tmp_path):
    """Between the encoder's parts, and from the picture, nothing is FP16."""
    kept = ("predict.encoder.stem", "predict.encoder.stage1", "predict.encoder.stage2")
    config = ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", precision="fp16", graph=graph)
    nodes = onnx.load(export_onnx(replace(config, keep_fp32=kept, check=False))).graph.node
    casts = {node.output[0]: node for node in nodes if node.op_type == "Cast"}
    targets = {name: node.attribute[0].i for name, node in casts.items()}
    wide = [node for name, node in casts.items() if targets[name] == onnx.TensorProto.FLOAT]
    assert [node.name for node in wide if targets.get(node.input[0]) == onnx.TensorProto.FLOAT16] == []
    readers = {name: node for node in nodes for name in node.input}
    first = next(node for node in nodes if node.op_type == "Conv")
    assert first.name.startswith("predict.encoder.stem")
    assert readers[first.output[0]].op_type != "Cast"


def test_the_search_measures_crops_of_the_bundled_photographs_too():
    plain, more = load_pictures(), load_pictures(cropped=True)
    assert [picture.name for picture in more[:5]] == [picture.name for picture in plain]
    assert len(more) == 15
    astronaut, crop = plain[0].image_HWC, more[6]
    height, width = astronaut.shape[:2]
    top, left = int(height * 0.4), int(width * 0.1)
    assert crop.name == f"astronaut.jpg from {top}, {left}"
    expected = astronaut[top : top + height * 3 // 5, left : left + width * 3 // 5]
    assert (crop.image_HWC == expected).all()
    assert len(load_pictures(disc_folder(), cropped=True)) == len(load_pictures(disc_folder()))


def test_what_fp16_cannot_hold_is_found_and_stays_fp32(faulty, tmp_path):
    said = []
    path = tmp_path / "a.onnx"
    export_onnx(ExportConfig(checkpoint=faulty, output=path, precision="fp16", pictures=disc_folder()), said.append)
    manifest = read_manifest(path)
    assert manifest.keep_fp32 == ("predict.encoder.stage1",)  # the whole stage, of which noise is measured
    assert manifest.parity["passed"]
    assert manifest.parity["rounded"]["passed"]
    assert any("looking for layers to keep in FP32" in line for line in said)


@pytest.mark.parametrize("faulty", list(FAULTS)[:1], indirect=True)
def test_where_nothing_keeps_half_of_the_limits_the_first_that_keeps_them_is_taken(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(fp16_layer_search, "_halved", lambda limits: replace(limits, mean_abs=0.0))
    for checkpoint, kept in ((faulty, ("predict.encoder.stage1",)), (checkpoint_file(), ())):
        config = ExportConfig(checkpoint=checkpoint, output=tmp_path / "a.onnx", precision="fp16", overwrite=True)
        manifest = read_manifest(export_onnx(replace(config, pictures=disc_folder())))
        assert manifest.keep_fp32 == kept
        assert manifest.parity["rounded"]["passed"]


def test_what_no_search_can_mend_is_told_by_the_contracts_own_limits(tmp_path, monkeypatch):
    limits = replace(tolerance_for("fp16"), mean_abs=1e-9)
    monkeypatch.setattr(fp16_layer_search, "tolerance_for", lambda _: limits)
    config = ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", precision="fp16")
    with pytest.raises(ParityError, match="at most 1e-09"):
        export_onnx(replace(config, pictures=disc_folder()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("faulty", list(FAULTS)[:2], indirect=True)
def test_without_a_search_it_is_refused_and_nothing_is_left(faulty, tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(ParityError) as caught:
        export_onnx(
            ExportConfig(checkpoint=faulty, output=path, precision="fp16", pictures=disc_folder(), keep_fp32=())
        )
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == [faulty]


def test_bf16_holds_what_fp16_does_not(tmp_path):
    """Of these networks the values are 16384 times as large, which bf16's exponent holds."""
    tolerance = tolerance_for("bf16")
    for checkpoint in (disc_checkpoint(), scaled(2.0**14)):
        save_checkpoint(tmp_path / "discs.safetensors", checkpoint)
        config = ExportConfig(checkpoint=tmp_path / "discs.safetensors", precision="bf16", check=False, overwrite=True)
        path = export_onnx(config)
        model = RoundedModel(rounded_graph(onnx.load(path)), checkpoint.preprocess, checkpoint.postprocess)
        report = model.judged(Reference(checkpoint, discs()), discs(), tolerance)
        assert (report.not_finite, model.overflow) == ((), "")
        assert 0 < report.mean_abs < 0.1


@pytest.mark.parametrize("part", ["predict.encoder.stage9", "refine.up1.norm", ""])
def test_a_part_that_is_not_there_is_named(part, tmp_path):
    config = ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", precision="fp16", keep_fp32=(part,))
    with pytest.raises(UsageError, match=f"keep-fp32 {part}: the network has no such part"):
        export_onnx(config)


def test_an_fp32_network_has_nothing_to_keep():
    with pytest.raises(UsageError, match="all of an fp32 network stays FP32"):
        ExportConfig(checkpoint=checkpoint_file(), keep_fp32=(BLOCK,))


@pytest.mark.parametrize(
    "kept", [("predict.side_outputs.convs",), ("predict.encoder", BLOCK), (BLOCK, "predict.encoder.stage1", BLOCK)]
)
def test_lists_of_modules_and_parts_in_parts_stay_fp32(kept, tmp_path):
    path = export_onnx(
        ExportConfig(
            checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", precision="fp16", keep_fp32=kept, check=False
        )
    )
    for name, kind in weight_types(path).items():
        assert (kind == "FLOAT") == any(name.startswith(f"{part}.") for part in kept), name
