"""FP16 and bf16 networks with parts in FP32: in the file, in the manifest, and found when the contract asks."""

import numpy as np
import onnx
import pytest
import torch

from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_export.quantize.fp16_layer_search import RoundedNetwork
from basnet_runtime.manifest import read_manifest
from basnet_runtime.open import open_model
from basnet_torch.checkpoint import model_from_checkpoint, save_checkpoint
from basnet_torch.errors import ParityError, UsageError
from tests.models import checkpoint_file, disc_checkpoint, disc_folder, discs, exported, with_weights

BLOCK = "predict.encoder.stage1.1"


def weight_types(path):
    model = onnx.load(path)
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    return {node.name: types[node.input[1]] for node in model.graph.node if node.op_type == "Conv"}


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A network that computes what the discs' does, with values beyond FP16's 65,504 inside one block."""

    def change(name, value):
        if name.startswith(f"{BLOCK}.norm1.") and name.endswith(("weight", "bias")):
            return value * 1e6
        return value / 1e6 if name == f"{BLOCK}.conv2.weight" else value

    path = tmp_path_factory.mktemp("overflowing") / "overflowing.pth"
    save_checkpoint(path, with_weights(disc_checkpoint(), change))
    return path


def test_named_parts_stay_fp32_and_the_others_do_not():
    path = exported(precision="fp16", keep_fp32=(BLOCK, "refine.up1"))
    types = weight_types(path)
    kept = {name for name, kind in types.items() if kind == "FLOAT"}
    assert kept == {f"{BLOCK}.conv1", f"{BLOCK}.conv2", "refine.up1.conv"}
    assert {kind for name, kind in types.items() if name not in kept} == {"FLOAT16"}
    assert read_manifest(path).keep_fp32 == (BLOCK, "refine.up1")
    assert read_manifest(path).parity["passed"]


def test_what_overflows_is_found_and_stays_fp32(overflowing, tmp_path):
    said = []
    config = ExportConfig(checkpoint=overflowing, output=tmp_path / "a.onnx", precision="fp16", pictures=disc_folder())
    path = export_onnx(config, said.append)
    kept = read_manifest(path).keep_fp32
    assert BLOCK in kept
    assert all(part.startswith("predict.encoder.stage1.") for part in kept)  # the stage is what noise is measured of
    assert read_manifest(path).parity["passed"]
    assert any("looking for layers to keep in FP32" in line for line in said)


def test_without_a_search_it_is_refused_and_nothing_is_left(overflowing, tmp_path):
    config = ExportConfig(
        checkpoint=overflowing, output=tmp_path / "a.onnx", precision="fp16", pictures=disc_folder(), keep_fp32=()
    )
    with pytest.raises(ParityError):
        export_onnx(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["predict.encoder.stage9", "refine.up1.norm", ""])
def test_a_part_that_is_not_there_is_named(part, tmp_path):
    config = ExportConfig(checkpoint=checkpoint_file(), output=tmp_path / "a.onnx", precision="fp16", keep_fp32=(part,))
    with pytest.raises(UsageError, match=f"keep-fp32 {part}: the network has no such part"):
        export_onnx(config)


def test_an_fp32_network_has_nothing_to_keep():
    with pytest.raises(UsageError, match="all of an fp32 network stays FP32"):
        ExportConfig(checkpoint=checkpoint_file(), keep_fp32=(BLOCK,))


def test_rounding_in_pytorch_is_no_milder_than_the_file():
    """The search judges by it; ONNX Runtime fuses layers and so rounds less often."""
    network = RoundedNetwork(model_from_checkpoint(disc_checkpoint()), "fp16", ())
    plain = model_from_checkpoint(disc_checkpoint())
    with open_model(exported(precision="fp16", graph="tensor"), threads=1) as model, torch.no_grad():
        prepared = np.stack([model.prepare(picture.image_HWC) for picture in discs()])
        file = model.infer(list(prepared))
        rounded, exact = (net.mask(torch.from_numpy(prepared)).numpy() for net in (network, plain))
    errors = np.abs(rounded - exact).mean(), np.abs(file - exact).mean()
    assert errors[1] <= errors[0] < 4 * errors[1]


def test_with_everything_kept_nothing_is_rounded_but_between_parts():
    whole = RoundedNetwork(model_from_checkpoint(disc_checkpoint()), "bf16", ("predict", "refine"))
    none = RoundedNetwork(model_from_checkpoint(disc_checkpoint()), "bf16", ())
    plain = model_from_checkpoint(disc_checkpoint())
    images = torch.from_numpy(np.stack([disc_checkpoint().preprocess.apply(p.image_HWC) for p in discs()]))
    with torch.no_grad():
        exact = plain.mask(images)
        kept, lost = ((net.mask(images) - exact).abs().mean() for net in (whole, none))
    assert kept < 0.75 * lost


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
