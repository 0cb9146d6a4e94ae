"""The choice of the verdict's threshold: what is cut out, what is counted, what is stored."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from basnet_benchmarks import threshold
from basnet_benchmarks.cli import app
from basnet_benchmarks.threshold import ThresholdConfig, background_square, measure_threshold
from basnet_runtime.open import open_model
from basnet_torch.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from basnet_torch.errors import MaskValuesError, UsageError
from basnet_torch.model.basnet import BASNet
from basnet_torch.spec import Postprocess, Preprocess
from tests.models import draw_discs


@pytest.fixture
def data_set(tmp_path):
    """Discs of rising brightness, which is their score to a network that gives brightness, on a dim ground."""
    folder = tmp_path / "discs"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    _, masks = draw_discs(10, size=120)
    for index, mask in enumerate(masks):
        image = np.full((120, 120, 3), 40, np.uint8)
        image[mask > 0] = 100 + 10 * index
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), (mask * 255).astype(np.uint8))
    return folder


@pytest.fixture
def brightness(monkeypatch, make_model):
    monkeypatch.setattr(threshold, "open_model", lambda *_, **__: make_model())


def test_the_threshold_is_chosen_on_one_half_and_counted_on_the_other(data_set, brightness):
    report = measure_threshold(ThresholdConfig(choose=data_set, lost=0.2, report=(data_set,)))
    chose, others, whole = report.rows
    assert report.threshold == pytest.approx(120 / 255, abs=0.002)  # of 100, 120, 140, 160, 180 one may be lost
    assert (chose.objects, chose.lost, others.objects, others.lost) == (5, 1, 5, 1)
    assert (whole.objects, whole.lost) == (10, 2)
    assert whole.empty >= 8
    assert whole.found == 0
    assert whole.auc == 1
    assert report.before == 0.1


def test_pieces_of_background_keep_clear_of_what_a_label_map_leaves_out(data_set, brightness, make_model):
    """A bright band that is left out would be called salient if it were taken for background."""
    for index in range(10):
        image, mask = (data_set / part / f"{index}.png" for part in ("images", "masks"))
        labels = np.minimum(cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE), 1)
        picture = cv2.imread(str(image))
        picture[:20], labels[:20] = 255, 255
        cv2.imwrite(str(image), picture)
        cv2.imwrite(str(mask), labels)
    with pytest.raises(MaskValuesError, match="is a label map"):
        measure_threshold(ThresholdConfig(choose=data_set, lost=0.2))
    config = ThresholdConfig(choose=data_set, mask_values="labels")
    scored = list(threshold._scored(make_model(), data_set, config, lambda _: None))
    assert all(whole > 0.3 for whole, _ in scored)
    pieces = [piece for _, piece in scored if piece is not None]
    assert len(pieces) >= 5
    assert max(pieces) < 0.2  # the dim ground's


def test_keep_counts_at_the_models_own(data_set, brightness):
    report = measure_threshold(ThresholdConfig(choose=data_set, keep=True))
    assert report.threshold == 0.1
    assert [row.lost for row in report.rows] == [0, 0]
    assert all(row.found == row.empty > 0 for row in report.rows)  # the dim ground is brighter than that


def test_squares_are_as_large_as_can_be_and_clear_of_the_object():
    truth = np.zeros((100, 100), bool)
    truth[45:, :] = True
    rows, columns = background_square(truth, np.random.default_rng(0))
    assert rows.stop - rows.start == columns.stop - columns.start == 43
    assert not truth[: rows.stop + 1, columns].any()
    assert background_square(np.ones((50, 50), bool), np.random.default_rng(0)) is None


def test_the_command_stores_the_threshold_with_the_weights(data_set, tmp_path):
    torch.manual_seed(0)
    made = Checkpoint(
        width=2,
        state=BASNet(2).state_dict(),
        preprocess=Preprocess(height=32, width=32),
        postprocess=Postprocess(),
        origin="basnet-deploy",
        metadata={"note": "kept"},
    )
    source, target = tmp_path / "made.safetensors", tmp_path / "stored.safetensors"
    save_checkpoint(source, made, dtype=torch.float16)
    args = ["threshold", str(source), str(data_set), "--nothing", str(data_set / "images"), "--store", str(target)]
    answer = CliRunner().invoke(app, [*args, "--json", "--threads", "1"])
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["stored"] == "stored.safetensors"
    assert found["rows"][-1]["empty"] == 10
    stored = load_checkpoint(target)
    assert stored.postprocess == Postprocess(empty_below=found["threshold"])
    assert stored.metadata == {"note": "kept"}
    assert all(torch.equal(stored.state[name], value) for name, value in load_checkpoint(source).state.items())
    assert target.stat().st_size == pytest.approx(source.stat().st_size, rel=0.01)
    with open_model(target, threads=1) as model:
        assert model.postprocess.empty_below == found["threshold"]
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lost": 1.0}, "lost is"),
        ({"store": "a.safetensors"}, "give the checkpoint"),
        ({"store": "a.safetensors", "model": "a.onnx"}, "give the checkpoint"),
        ({"store": "a.onnx", "model": "a.pth"}, "write .pth"),
        ({"store": "a.pth", "model": "a.pth", "keep": True}, "store and keep"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, told):
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(threshold.UsageError, match=told):
        ThresholdConfig(choose=tmp_path, **paths)


@pytest.mark.parametrize("pictures", [1, 10])
def test_without_an_object_nothing_is_chosen(data_set, brightness, pictures):
    for mask in (data_set / "masks").iterdir():
        cv2.imwrite(str(mask), np.zeros((120, 120), np.uint8))
    with pytest.raises(UsageError, match="none of the pictures that choose, every second, has an object"):
        measure_threshold(ThresholdConfig(choose=data_set, limit=pictures))
    report = measure_threshold(ThresholdConfig(choose=data_set, limit=pictures, keep=True))
    assert [row.objects for row in report.rows] == [0, 0]
