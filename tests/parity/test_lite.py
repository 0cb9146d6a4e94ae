"""The built-in model: its ONNX file computes what its checkpoint computes, finds objects, and is small."""

import numpy as np
import pytest
from skimage import data

from basnet_export.samples import load_pictures
from basnet_runtime.manifest import read_manifest, sha256_of
from basnet_runtime.open import BUILTIN_INT8, open_model
from basnet_runtime.parity import Picture, compare, tolerance_for
from basnet_torch.checkpoint import load_checkpoint
from basnet_torch.data.datasets import find_pairs, read_pair
from tests.models import needs_int8, needs_openvino_plugin


def test_files_are_small_and_belong_together(lite_onnx, lite_checkpoint):
    assert lite_onnx.stat().st_size < 12_000_000
    assert lite_checkpoint.stat().st_size < 12_000_000
    manifest = read_manifest(lite_onnx)
    assert manifest.checkpoint_sha256 == sha256_of(lite_checkpoint)
    assert manifest.preprocess == load_checkpoint(lite_checkpoint).preprocess
    assert manifest.width == 16


def test_it_finds_the_cup():
    """The coffee cup's middle is salient, the table's corners are not."""
    with open_model() as model:
        mask = model.mask(data.coffee())
    assert mask[150:250, 250:350].mean() > 0.7
    assert mask[:40, :40].mean() < 0.3


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_backends_keep_the_contract(lite_onnx, lite_checkpoint, backend):
    with open_model(lite_checkpoint) as reference, open_model(lite_onnx, backend=backend) as candidate:
        report = compare(reference, candidate, load_pictures(None), tolerance_for("fp32"))
    assert report, str(report)


@needs_int8
@pytest.mark.parametrize("device", ["cpu", pytest.param("openvino", marks=needs_openvino_plugin)])
def test_the_int8_file_is_of_these_weights_and_keeps_its_contract(device, lite_checkpoint):
    assert read_manifest(BUILTIN_INT8).checkpoint_sha256 == sha256_of(lite_checkpoint)
    with open_model(lite_checkpoint) as reference, open_model(BUILTIN_INT8, device=device) as candidate:
        assert candidate.backend.name == {"cpu": "openvino", "openvino": "onnxruntime"}[device]
        report = compare(reference, candidate, load_pictures(None), tolerance_for("int8"))
    assert report, str(report)


@needs_int8
@needs_openvino_plugin
def test_onnx_runtimes_provider_gives_openvinos_int8_masks():
    """Two builds of OpenVINO may add floats in another order, and bytes not at all."""
    image = data.coffee()
    with open_model(BUILTIN_INT8) as alone, open_model(BUILTIN_INT8, device="openvino") as provided:
        np.testing.assert_allclose(provided.mask(image), alone.mask(image), rtol=0, atol=1e-3)


@pytest.mark.shared
def test_every_dev_picture_in_onnx_runtime(lite_onnx, lite_checkpoint, data_root):
    """Largest difference 1e-4 and at most 0.01 % of pixels change side, on each of the 200."""
    pictures = [
        Picture(name=pair.name, image_HWC=image, truth_HW=truth.mask_HW.astype(np.float32) / 255)
        for pair in find_pairs([data_root / "dev"])
        for image, truth in [read_pair(pair)]
    ]
    with open_model(lite_checkpoint) as reference, open_model(lite_onnx, backend="onnxruntime") as candidate:
        report = compare(reference, candidate, pictures, tolerance_for("fp32"))
    assert report.pictures == 200
    assert report, str(report)
    assert abs(report.max_f_change) < 1e-4
