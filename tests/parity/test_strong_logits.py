"""The paper's network in the authors' names, with logits so strong that FP32 itself is far from FP64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from basnet_export.config import ExportConfig
from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_export.onnx_export import export_onnx
from basnet_export.reference import Reference
from basnet_export.samples import load_pictures
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.manifest import read_manifest
from basnet_runtime.open import open_model
from basnet_runtime.parity import compare, tolerance_for
from basnet_torch.checkpoint import load_checkpoint, read_file, save_authors_checkpoint
from basnet_torch.model.basnet import BASNet
from tests.models import SIZE, draw_discs, settle_statistics

LOGITS = 100  # standard deviation of the coarse map's


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Drawn weights whose masks are not flat: logits are spread around zero.

    With one thread always: with another number the statistics are others in the last bit, and with them the weights and
    how far both runtimes happen to be from FP64. Tests before may have set the number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _drawn(tmp_path_factory.mktemp("authors") / "basnet.pth")
    finally:
        torch.set_num_threads(threads)


def _drawn(path):
    torch.manual_seed(0)
    model = BASNet(64).train()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    images = torch.from_numpy(draw_discs(4)[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    settle_statistics(model, [images])
    model.eval()
    side = model.predict.side_outputs.convs["stage1"]
    with torch.no_grad():
        coarse = model(images)[1]
        side.weight.mul_(LOGITS / coarse.std())
        side.bias.fill_(-coarse.mean() * LOGITS / coarse.std())
        model.refine.output.bias.sub_(model(images)[0].mean())
    save_authors_checkpoint(path, model.state_dict())
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    """Proven on the photographs: of smaller pictures 0.01 % would be less than one pixel."""
    return export_onnx(ExportConfig(checkpoint=checkpoint, size=(SIZE, SIZE)))


def test_it_is_the_authors_file(checkpoint):
    assert {"inconv.weight", "encoder1.0.conv1.weight", "refunet.conv_d0.weight"} <= set(read_file(checkpoint))
    assert load_checkpoint(checkpoint).origin == "authors"


def test_what_is_as_near_to_fp64_as_pytorch_is_proven(checkpoint, exported):
    manifest = read_manifest(exported)
    receipt = manifest.parity
    assert receipt["passed"]
    own = receipt["pytorch_fp32"]
    assert own["max_abs"] > tolerance_for("fp32").max_abs  # PyTorch FP32 would not pass a fixed limit either
    for name in ("max_abs", "p999_abs"):
        assert receipt["tolerance"][name] == max(getattr(tolerance_for("fp32"), name), 2 * own[name])
        assert receipt[name] <= receipt["tolerance"][name]
    reference = Reference(replace(load_checkpoint(checkpoint), preprocess=manifest.preprocess), load_pictures())
    with open_model(exported, backend="onnxruntime") as model:
        report = reference.report(model, "fp32")
        assert report, str(report)
        assert not compare(
            reference, model, load_pictures(), tolerance_for("fp32")
        )  # by PyTorch FP32 it would be refused
    assert np.isclose(report.max_abs, receipt["max_abs"], rtol=0.5)


def test_it_becomes_a_plan(exported, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed; pip install 'basnet-deploy[rtx]'")
    plan = build_engine(BuildConfig(model=exported, output=tmp_path / "a.plan", flavor="rtx"))
    manifest, facts = read_plan_manifest(plan)
    assert (manifest.origin, manifest.width, facts.typed_flops) == ("authors", 64, 1.0)
