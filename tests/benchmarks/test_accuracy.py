"""Scores equal PySODMetrics' and hand-made ones, on random and on edge maps, and the command scores finished masks."""

import json

import numpy as np
import py_sod_metrics as sod
import pytest
from typer.testing import CliRunner

from basnet_benchmarks.accuracy import AccuracyConfig, measure_accuracy
from basnet_benchmarks.cli import app
from basnet_benchmarks.saliency_scores import SaliencyMeter, relaxed_boundary_f
from basnet_torch.errors import UsageError
from tests.torch.conftest import draw_pairs


def cases(count=4):
    rng = np.random.default_rng(0)
    for mask in draw_pairs(count, 48, seed=2)[1]:
        truth = (mask > 127).astype(np.float32)
        levels = np.clip(truth * 200 + rng.normal(20, 40, truth.shape), 0, 255).astype(np.uint8)
        levels[0, 0], levels[0, 1] = 0, 255  # PySODMetrics stretches bytes to their range, which then is this one
        yield levels, truth


def test_measures_equal_pysodmetrics():
    meter = SaliencyMeter()
    theirs = {"wfm": sod.WeightedFmeasure(), "sm": sod.Smeasure(), "em": sod.Emeasure(), "mae": sod.MAE()}
    for levels, truth in cases():
        meter.add((levels / 255).astype(np.float32), truth)
        for measure in theirs.values():
            measure.step(pred=levels, gt=(truth * 255).astype(np.uint8))
    scores = meter.scores()
    assert scores.pictures == 4
    assert scores.weighted_f == pytest.approx(theirs["wfm"].get_results()["wfm"], abs=1e-6)
    assert scores.s_measure == pytest.approx(theirs["sm"].get_results()["sm"], abs=1e-6)
    assert scores.e_max == pytest.approx(theirs["em"].get_results()["em"]["curve"].max(), abs=1e-5)
    assert scores.mae == pytest.approx(theirs["mae"].get_results()["mae"], abs=1e-6)


def test_both_conventions_of_max_f_differ():
    """Two pictures whose best thresholds differ: the curves' mean is not the F of the means."""
    meter = SaliencyMeter()
    truth = np.zeros((16, 16), np.float32)
    truth[4:8, 4:8] = 1
    meter.add(truth * 0.9, truth)
    meter.add(np.where(truth > 0, 0.3, 0.1).astype(np.float32), truth)
    scores = meter.scores()
    assert scores.max_f == pytest.approx(1.0)
    assert scores.max_f_curve <= scores.max_f
    assert scores.mean_f < scores.max_f_curve


@pytest.mark.parametrize(
    ("mask", "truth", "boundary", "relaxed"),
    [
        ("empty", "empty", 1.0, 1.0),
        ("full", "empty", 0.0, 1.0),  # a full mask has no outline within the picture
        ("empty", "pixel", 0.0, 0.0),
        ("pixel", "pixel", 1.0, 1.0),
        ("full", "full", 1.0, 1.0),
    ],
)
def test_edge_maps(mask, truth, boundary, relaxed):
    maps = {"empty": np.zeros((24, 24), np.float32), "full": np.ones((24, 24), np.float32)}
    maps["pixel"] = maps["empty"].copy()
    maps["pixel"][12, 12] = 1
    meter = SaliencyMeter()
    meter.add(maps[mask], maps[truth])
    scores = meter.scores()
    assert all(np.isfinite(value) for value in scores.to_dict().values())
    assert (scores.boundary_iou, scores.relaxed_boundary_f) == (boundary, relaxed)
    assert scores.mae == pytest.approx(np.abs(maps[mask] - maps[truth]).mean())


def test_relaxed_boundary_counts_shares():
    """A square that lies 10 pixels to the right: precision and recall by hand."""
    truth = np.zeros((60, 60), bool)
    truth[20:40, 20:40] = True
    assert relaxed_boundary_f(np.roll(truth, 3, 1), truth) == 1.0
    moved = relaxed_boundary_f(np.roll(truth, 10, 1), truth)
    outline = 4 * 19
    rows = 2 * (10 + 3)  # the top and bottom rows that overlap, and 3 pixels beyond the truth's corners
    column = 2 * 3  # of the inner side, 3 pixels below the top row and 3 above the bottom row
    assert moved == pytest.approx((rows + column) / outline, abs=1e-9)


def test_report_of_a_data_set(bench_models, data_set):
    report = measure_accuracy(AccuracyConfig(model=bench_models.onnx, datasets=(data_set,), threads=1))
    (row,) = report.rows
    assert (row.dataset, row.scores.pictures) == ("set", 3)
    assert [p.mae for p in row.best] == sorted(p.mae for p in row.best)
    assert row.worst[0].mae == row.best[-1].mae
    checkpoint = measure_accuracy(AccuracyConfig(model=bench_models.checkpoint, datasets=(data_set,), threads=1))
    assert checkpoint.rows[0].scores.mae == pytest.approx(row.scores.mae, abs=1e-5)


def test_pictures_without_masks_are_refused(bench_models, picture_folder):
    with pytest.raises(UsageError, match="holds pictures and no masks"):
        measure_accuracy(AccuracyConfig(model=bench_models.onnx, datasets=(picture_folder,), threads=1))


def test_command(bench_models, data_set, tmp_path):
    common = ["accuracy", str(bench_models.onnx), str(data_set), "--threads", "1"]
    answer = CliRunner().invoke(app, [*common, "-o", str(tmp_path / "a.md")])
    assert answer.exit_code == 0, answer.output
    assert "| set | 3 | " in (tmp_path / "a.md").read_text()
    values = json.loads(CliRunner().invoke(app, [*common, "--json"]).stdout)
    assert values["datasets"][0]["pictures"] == 3
    assert CliRunner().invoke(app, ["accuracy", "lite"]).exit_code == 2
