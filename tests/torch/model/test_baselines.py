"""The networks beside BASNet: of its size, each with the idea it is known for, trainable, kept with their name."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from basnet_torch.checkpoint import load_checkpoint, model_from_checkpoint, save_checkpoint
from basnet_torch.errors import CheckpointError, UsageError
from basnet_torch.model.baselines import unpool
from basnet_torch.model.basnet import BASNet
from basnet_torch.model.registry import ARCHITECTURES, build_network
from basnet_torch.train.config import TrainConfig
from basnet_torch.train.pretrained import load_resnet34
from basnet_torch.train.trainer import Trainer

PARAMETERS = {
    "basnet": 87_060_360,
    "basnet-coarse": 86_578_183,
    "fcn": 86_773_379,
    "segnet": 85_790_785,
    "unet": 78_588_929,
    "hed": 87_368_013,
}
OTHERS = [name for name in PARAMETERS if name != "basnet"]


def run(arch, store, path, **changes):
    values = {"width": 4, "size": 32, "eval_size": 64, "store_size": 64, "batch": 6, "steps": 30, "warmup": 2}
    values |= {"lr": 5e-3, "crop_scale": (1.0, 1.0), "autocast": "fp32", "ema": 0.0, "arch": arch, **changes}
    return Trainer(TrainConfig(**values), store, path)


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_count_is_near_that_of_basnet(arch):
    assert ARCHITECTURES.keys() == PARAMETERS.keys()
    with torch.device("meta"):
        count = sum(p.numel() for p in build_network(arch, 64).parameters())
    assert count == PARAMETERS[arch]
    assert abs(count / PARAMETERS["basnet"] - 1) < 0.12


@pytest.mark.parametrize("arch", OTHERS)
def test_maps_have_names_and_the_picture_s_size(arch):
    model = build_network(arch, 2).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
        mask = model.mask(torch.randn(1, 3, 64, 96))
    assert all(m.shape == (2, 1, 64, 96) for m in maps)
    assert len(maps._fields) == len(maps) == {"basnet-coarse": 7, "hed": 7}.get(arch, 1)
    assert mask.shape == (1, 1, 64, 96)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.zeros(1, 3, 50, 64))


@pytest.mark.parametrize("arch", OTHERS)
def test_it_learns_and_its_checkpoint_remembers_it(arch, store, tmp_path):
    trainer = run(arch, store, tmp_path, lr=1e-2)
    losses = [r.loss for r in trainer.fit()]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    saved = load_checkpoint(tmp_path / "last.pth")
    assert (saved.arch, saved.width) == (arch, 4)
    save_checkpoint(tmp_path / "a.safetensors", saved)
    again = model_from_checkpoint(load_checkpoint(tmp_path / "a.safetensors"))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.mask(image), trainer.average.eval().mask(image), rtol=0, atol=0)


def test_every_parameter_of_every_network_gets_a_gradient(store, tmp_path):
    for arch in PARAMETERS:
        trainer = run(arch, store, tmp_path / arch, width=2, steps=1)
        list(trainer.fit())
        missing = [name for name, p in trainer.model.named_parameters() if p.grad is None]
        assert not missing, arch


@pytest.mark.parametrize("loss", ["bce", "bce+ssim", "bce+iou"])
def test_ablated_losses_leave_terms_out(loss, store, tmp_path):
    trainer = run("basnet", store, tmp_path, width=2, steps=1, loss=loss)
    (result,) = trainer.fit()
    assert list(result.terms) == loss.split("+")
    assert result.loss == pytest.approx(sum(result.terms.values()), rel=1e-6)
    record = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert set(record) >= set(loss.split("+"))


def test_unpooling_equals_pytorch_s_own():
    x = torch.randn(2, 3, 4, 6)
    ranks = torch.rand(2, 3, 4, 6, 4).argsort(-1).float()  # a square's four values, one apart
    source = F.pixel_shuffle(ranks.permute(0, 1, 4, 2, 3).reshape(2, 12, 4, 6), 2)
    _, indices = F.max_pool2d(source, 2, return_indices=True)
    torch.testing.assert_close(unpool(x, source), F.max_unpool2d(x, indices, 2), rtol=0, atol=0)


def test_unpooling_an_even_surface_does_not_hang_on_rounding():
    even = torch.full((1, 1, 4, 4), 3.0)
    rough = even * (1 + 1e-6 * torch.randn(1, 1, 4, 4))
    x = torch.randn(1, 1, 2, 2)
    torch.testing.assert_close(unpool(x, rough), unpool(x, even), rtol=0, atol=0)


def test_without_refinement_it_is_the_predict_module():
    whole, coarse = BASNet(2).eval(), build_network("basnet-coarse", 2).eval()
    coarse.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("predict.")})
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(coarse(image), whole(image)[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_file_without_a_name_is_basnet_and_an_unknown_name_is_refused(tmp_path, small_model, store):
    list(run("basnet", store, tmp_path, width=2, steps=1).fit())
    content = torch.load(tmp_path / "last.pth", weights_only=True)
    content.pop("arch")  # as files were before there was a choice
    old = content["resume"]
    for name in ("arch", "loss", "augment", "accumulate", "momentum", "teacher", "compiler", "scale"):
        old["config"].pop(name)
    old.pop("scaler")
    old["data"].pop("content")
    old["optimizer"]["param_groups"][0].pop("factor")
    torch.save(content, tmp_path / "old.pth")
    assert load_checkpoint(tmp_path / "old.pth").arch == "basnet"
    resumed = run("basnet", store, tmp_path, width=2, steps=1)
    resumed.resume(tmp_path / "old.pth")
    assert resumed.step == 1
    assert resumed.optimizer.param_groups[0].get("factor", 1.0) == 1.0
    torch.save({**content, "arch": "vit"}, tmp_path / "new.pth")
    with pytest.raises(CheckpointError, match="arch 'vit', this version knows basnet"):
        load_checkpoint(tmp_path / "new.pth")


def test_a_pretrained_encoder_needs_one():
    with pytest.raises(UsageError, match="unet has no ResNet-34 encoder"):
        load_resnet34(build_network("unet", 2), "resnet34.pth")
