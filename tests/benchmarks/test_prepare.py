"""Ways of preparing agree where they should, and the ones that others take are seen to differ."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_benchmarks.cli import app
from basnet_benchmarks.prepare import AUTHORS, CHOSEN, LETTER, PrepareConfig, ways_without_graph
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.spec import Preprocess
from tests.torch.conftest import draw_pairs, write_png

TORCH = "PyTorch, interpolate, float32"
SMOOTH = "scikit-image, anti-aliased (its default)"
BYTES = "OpenCV, bilinear, on bytes"


def inputs_of(preprocess, image):
    return {way.name: way.prepare(image) for way in ways_without_graph(preprocess)}


@pytest.mark.parametrize("scale", ["255", "image_max"])
@pytest.mark.parametrize("size", [(300, 417), (96, 128), (500, 65)])
def test_opencv_and_pytorch_are_the_authors_resampling(scale, size):
    image = np.random.default_rng(0).integers(0, 200, (*size, 3), dtype=np.uint8)
    inputs = inputs_of(Preprocess(height=64, width=96, scale=scale), image)
    assert inputs[AUTHORS].shape == (3, 64, 96)
    for name in (CHOSEN, TORCH):
        assert np.abs(inputs[name] - inputs[AUTHORS]).max() < 5e-5, name  # float32 taps and weights
    letter = np.abs(inputs[LETTER] - inputs[AUTHORS])
    rim = [slice(int(new > old), new - int(new > old)) for new, old in zip((64, 96), size, strict=True)]
    assert letter[:, *rim].max() < 1e-6
    assert (letter.max() > 0.1) == (size[1] < 96)  # where it enlarges, the outermost pixels fade
    if size == (300, 417):
        assert np.abs(inputs[SMOOTH] - inputs[AUTHORS]).max() > 0.5  # noise, which anti-aliasing takes away
    assert 1e-3 < np.abs(inputs[BYTES] - inputs[AUTHORS]).max() < 0.02  # half a step of 255, over the deviation


def test_command(bench_models, tmp_path):
    picture_folder = tmp_path / "pictures"
    picture_folder.mkdir()
    for i, image in enumerate(draw_pairs(3, 200, seed=5)[0]):
        write_png(picture_folder / f"disc{i}.png", image[..., ::-1])
    options = ["--model", str(bench_models.checkpoint), "--threads", "1", "--json", "-o", str(tmp_path / "p.md")]
    answer = CliRunner().invoke(app, ["prepare", str(picture_folder), *options])
    assert answer.exit_code == 0, answer.output
    values = json.loads(answer.stdout)
    ways = {way["name"]: way for way in values["ways"]}
    assert [way["not_run"] for way in values["ways"]] == [""] * 8
    assert ways[AUTHORS]["input"]["max_abs"] == ways[AUTHORS]["mask"]["flips"] == 0
    for name in (CHOSEN, TORCH, "frame graph in ONNX Runtime, float32", "frame graph in OpenVINO, float32"):
        assert ways[name]["input"]["max_abs"] < 5e-5, name
        assert ways[name]["mask"]["max_abs"] < 1e-4, name
        assert len(ways[name]["pictures"]) == 3
    assert ways[SMOOTH]["mask"]["mean_abs"] > 10 * ways[CHOSEN]["mask"]["mean_abs"]
    assert "is taken" in values["choice"]
    text = (tmp_path / "p.md").read_text()
    assert "| frame graph in OpenVINO, float32 | frame graph |" in text
    assert "Choice: OpenCV" in text


def test_without_scikit_image_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.transform", None)
    with pytest.raises(BackendUnavailable, match="pip install"):
        ways_without_graph(Preprocess())


def test_an_export_is_refused(bench_models):
    with pytest.raises(UsageError, match="give the checkpoint"):
        PrepareConfig(model=bench_models.onnx)
