"""Every network exports, is proven against PyTorch, and says what it is."""

import json

import pytest
import torch

from basnet_export.config import ExportConfig
from basnet_export.convert import convert_checkpoint
from basnet_export.describe import describe
from basnet_export.onnx_export import export_onnx
from basnet_runtime.manifest import Manifest, read_manifest
from basnet_runtime.open import open_model
from basnet_torch.checkpoint import Checkpoint, save_checkpoint
from basnet_torch.errors import UsageError
from basnet_torch.model.registry import build_network
from basnet_torch.spec import Postprocess, Preprocess
from tests.models import SIZE, disc_folder, discs, draw_discs, exported, settle_statistics

LAST = {
    "basnet-coarse": "predict.side_outputs.convs.stage1",
    "fcn": "score8",
    "segnet": "output",
    "unet": "output",
    "hed": "fuse",
}


@torch.no_grad()
def center(model, inputs):
    """Adapt the last layer so that its zero lies between ground and object, as networks this young are shy."""
    logits = torch.cat([model(batch)[0].flatten() for batch in inputs.split(8)])
    last = model.get_submodule(LAST[model.arch])
    low, high = logits.quantile(0.5), logits.quantile(0.98)
    last.bias -= (low + high) / 2
    if model.arch in ("segnet", "unet"):  # whose last layer alone makes the map
        factor = 6 / (high - low)
        last.weight *= factor
        last.bias *= factor


def trained(arch, path, width=4, steps=24):
    torch.manual_seed(0)
    preprocess = Preprocess(height=SIZE, width=SIZE)
    images, masks = draw_discs(16)
    inputs = torch.stack([torch.from_numpy(preprocess.apply(image)) for image in images])
    truth = torch.from_numpy(masks)[:, None]
    model = build_network(arch, width).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        part = slice(8 * (step % 2), 8 * (step % 2) + 8)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(inputs[part])[0], truth[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    settle_statistics(model, inputs.split(8))
    center(model.eval(), inputs)
    found = Checkpoint(
        arch=arch,
        width=width,
        state=model.state_dict(),
        preprocess=preprocess,
        postprocess=Postprocess(),
        origin="basnet-deploy",
    )
    save_checkpoint(path, found)
    return path


@pytest.mark.parametrize("arch", ["basnet-coarse", "fcn", "segnet", "unet", "hed"])
def test_it_exports_and_its_file_says_what_it_is(arch, tmp_path):
    steps = 40 if arch in ("segnet", "unet") else 24  # those without deep supervision or a strong skip learn slowly
    path = trained(arch, tmp_path / f"{arch}.safetensors", steps=steps)
    target = export_onnx(ExportConfig(checkpoint=path, pictures=disc_folder()))
    manifest = read_manifest(target)
    assert manifest.arch == arch
    assert manifest.parity["pictures"] == len(discs())
    names = {
        "basnet-coarse": "BASNet without refinement",
        "fcn": "FCN",
        "segnet": "SegNet",
        "unet": "U-Net",
        "hed": "HED",
    }
    assert describe(path).kind == f"PyTorch checkpoint of {names[arch]}"
    assert describe(target).kind == f"ONNX, tensor graph of {names[arch]}"
    with open_model(path) as model:
        assert model.mask(discs()[0].image_HWC).shape == discs()[0].truth_HW.shape
    with pytest.raises(UsageError, match="layout has names for BASNet alone"):
        convert_checkpoint(path, tmp_path / "a.pth", layout="authors")


def test_manifests_from_before_name_basnet():
    old = json.loads(read_manifest(exported(precision="fp32", graph="tensor")).to_json())
    old.pop("arch")
    assert Manifest.from_json(json.dumps(old)).arch == "basnet"
