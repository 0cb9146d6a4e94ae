"""Scores equal PySODMetrics' and hand-made ones, on random and on edge maps, and the command scores finished masks."""

import json
import shutil
from dataclasses import asdict, replace

import cv2
import numpy as np
import py_sod_metrics as sod
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from basnet_benchmarks.accuracy import (
    AccuracyConfig,
    PictureScore,
    SaliencyMeter,
    _Extremes,
    measure_accuracy,
    relaxed_boundary_f,
)
from basnet_benchmarks.cli import app
from basnet_benchmarks.parity import ParityConfig, Pictures, measure_parity
from basnet_benchmarks.report import page
from basnet_benchmarks.results import markdown, values_of
from basnet_runtime.media.compose.edges import refined_edges
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import open_model
from basnet_runtime.parity import Picture, compare, tolerance_for
from basnet_torch.data import datasets
from basnet_torch.data.datasets import find_pairs, load_pairs
from basnet_torch.data.masks import decode_mask
from basnet_torch.errors import DataError, MaskValuesError, UsageError
from basnet_torch.metrics import boundary_iou
from tests.torch.conftest import draw_pairs, write_png


def cases(count=4):
    rng = np.random.default_rng(0)
    for mask in draw_pairs(count, 48, seed=2)[1]:
        truth = (mask > 127).astype(np.float32)
        levels = np.clip(truth * 200 + rng.normal(20, 40, truth.shape), 0, 255).astype(np.uint8)
        levels[0, 0], levels[0, 1] = 0, 255  # PySODMetrics stretches bytes to their range, which then is this one
        yield levels, truth


SHAPE = (24, 32)


def edge_maps():
    """Empty, full, one pixel, and a square that touches the picture's edge."""
    maps = {"empty": np.zeros(SHAPE, np.float32), "full": np.ones(SHAPE, np.float32)}
    maps["pixel"], maps["corner"] = maps["empty"].copy(), maps["empty"].copy()
    maps["pixel"][12, 12] = 1
    maps["corner"][:9, :11] = 1
    return maps


def edge_cases():
    """Every edge map as truth, with every one and with noise as the mask."""
    rng = np.random.default_rng(3)
    noise = {"noise": (rng.integers(0, 256, SHAPE) / 255).astype(np.float32)}
    return [(mask, truth) for truth in edge_maps().values() for mask in (edge_maps() | noise).values()]


def random_cases():
    return [((levels / 255).astype(np.float32), truth) for levels, truth in cases()]


class Theirs:
    """PySODMetrics' own classes, one for each measure, with masks as they are."""

    def __init__(self):
        handlers = {
            "f": sod.FmeasureHandler(beta=0.3, with_adaptive=False, with_dynamic=True),
            "precision": sod.PrecisionHandler(with_adaptive=False, with_dynamic=True),
            "recall": sod.RecallHandler(with_adaptive=False, with_dynamic=True),
        }
        self.f = sod.FmeasureV2(metric_handlers=handlers)
        self.others = {"wfm": sod.WeightedFmeasure(), "sm": sod.Smeasure(), "em": sod.Emeasure(), "mae": sod.MAE()}

    def step(self, mask, truth):
        for measure in (self.f, *self.others.values()):
            measure.step(pred=mask, gt=truth > 0.5, normalize=False)

    def scores(self):
        curves = {name: values["dynamic"] for name, values in self.f.get_results().items()}
        precision, recall = curves["precision"], curves["recall"]
        below = 0.3 * precision + recall
        means = np.divide(1.3 * precision * recall, below, out=np.zeros_like(below), where=below > 0)
        found = {name: measure.get_results()[name] for name, measure in self.others.items()}
        return {
            "max_f": means.max(),
            "max_f_curve": curves["f"].max(),
            "mean_f": curves["f"].mean(),
            "weighted_f": found["wfm"],
            "s_measure": found["sm"],
            "e_max": found["em"]["curve"].max(),
            "e_mean": found["em"]["curve"].mean(),
            "mae": found["mae"],
        }


@pytest.mark.parametrize("case", [*range(len(edge_cases())), "all edge maps", "random"])
def test_measures_equal_pysodmetrics(case):
    pairs = random_cases() if case == "random" else edge_cases()
    pairs = [pairs[case]] if isinstance(case, int) else pairs
    meter, theirs = SaliencyMeter(), Theirs()
    for mask, truth in pairs:
        meter.add(mask, truth)
        theirs.step(mask, truth)
    ours = asdict(meter.scores())
    assert ours["pictures"] == len(pairs)
    assert {name: ours[name] for name in theirs.scores()} == pytest.approx(theirs.scores(), abs=1e-6)


def test_curves_hold_the_scores():
    meter = SaliencyMeter()
    for mask, truth in random_cases():
        meter.add(mask, truth)
    curves, scores = meter.curves(), meter.scores()
    assert curves.f.max() == pytest.approx(scores.max_f)
    assert curves.f_of_pictures.max() == pytest.approx(scores.max_f_curve)
    assert curves.recall[0] == pytest.approx(1.0)  # at threshold 0 everything is marked
    assert (np.diff(curves.recall) <= 0).all()
    f = 1.3 * curves.precision * curves.recall / (0.3 * curves.precision + curves.recall)
    assert curves.f == pytest.approx(f, abs=1e-12)
    assert {len(values) for values in curves.to_dict().values()} == {256}


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
    maps = edge_maps()
    meter = SaliencyMeter()
    meter.add(maps[mask], maps[truth])
    scores = meter.scores()
    assert all(np.isfinite(value) for value in asdict(scores).values())
    assert (scores.boundary_iou, scores.relaxed_boundary_f) == (boundary, relaxed)
    assert scores.mae == pytest.approx(np.abs(maps[mask] - maps[truth]).mean())


@pytest.mark.parametrize("seed", range(4))
def test_boundary_measures_equal_independent_ones(seed):
    """SciPy's morphology and distances instead of OpenCV's, on random blobs."""
    rng = np.random.default_rng(seed)
    mask, truth = (ndimage.gaussian_filter(rng.normal(size=(50, 70)), 4) > 0 for _ in range(2))

    def boundary(area, width, edge):
        return area & ~ndimage.binary_erosion(area, np.ones((3, 3)), iterations=width, border_value=edge)

    def near(points, others):
        return (ndimage.distance_transform_edt(~others)[points] <= 3).mean()

    lines = [boundary(area, 1, 1) for area in (mask, truth)]
    precision, recall = near(*lines), near(*lines[::-1])
    assert relaxed_boundary_f(mask, truth) == pytest.approx(1.3 * precision * recall / (0.3 * precision + recall))
    bands = [boundary(area, round(0.02 * np.hypot(50, 70)), 0) for area in (mask, truth)]
    assert boundary_iou(mask, truth) == pytest.approx((bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum())


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
    (row,) = report.datasets
    assert (row.dataset, row.scores.pictures) == ("set", 3)
    assert [p.mae for p in row.best] == sorted(p.mae for p in row.best)
    assert row.worst[0].mae == row.best[-1].mae
    checkpoint = measure_accuracy(AccuracyConfig(model=bench_models.checkpoint, datasets=(data_set,), threads=1))
    assert checkpoint.datasets[0].scores.mae == pytest.approx(row.scores.mae, abs=1e-5)


def test_several_data_sets_and_their_best_and_worst_pictures(bench_models, data_set, tmp_path):
    other = tmp_path / "other" / data_set.name
    shutil.copytree(data_set, other)
    write_png(other / "masks" / "disc1.png", np.zeros((72, 72), np.uint8))
    config = AccuracyConfig(model=bench_models.onnx, datasets=(data_set, other), threads=1, panels=True)
    report = measure_accuracy(config)
    assert [row.dataset for row in report.datasets] == [str(data_set), str(other)]  # one folder name, told apart
    assert [row.empty for row in report.datasets] == [0, 1]
    assert len(report.panels) == 12  # three pictures as best and as worst in both
    first = report.datasets[0]
    assert [panel.name for panel in first.panels] == [own.name for own in (*first.best, *first.worst)]
    assert {label for label, _ in report.panels[0].images} == {"photo", "truth", "mask"}
    assert "1 pictures hold no object" in markdown(values_of(report))
    assert not measure_accuracy(replace(config, panels=False)).panels


def test_extremes_are_the_right_ones():
    """Of many pictures the five of smallest and largest error are kept, each with its own thumbnail."""
    extremes, errors = _Extremes("set", True), np.random.default_rng(0).permutation(40) / 40
    for error in errors:
        picture = Picture(name=f"{error:.3f}", image_HWC=np.zeros((4, 4, 3), np.uint8), truth_HW=np.zeros((4, 4), "f4"))
        extremes.add(PictureScore(name=picture.name, mae=float(error), iou=0.0), picture, np.zeros((4, 4), "f4"))
    ordered = np.sort(errors)
    assert [own.mae for own in extremes.best] == ordered[:5].tolist()
    assert [own.mae for own in extremes.worst] == ordered[::-1][:5].tolist()
    assert [panel.name for panel in extremes.panels] == [own.name for own in (*extremes.best, *extremes.worst)]


def test_refined_edges_are_scored(bench_models, data_set):
    config = AccuracyConfig(model=bench_models.onnx, datasets=(data_set,), threads=1)
    plain, refined = (measure_accuracy(replace(config, refine_edges=on)) for on in (False, True))
    with open_model(bench_models.onnx, threads=1) as model:
        pairs = [(p, np.rint(model.mask(p.image_HWC) * 255).astype(np.uint8)) for p in Pictures(data_set)]
    meter = SaliencyMeter()
    for picture, mask in pairs:
        meter.add((refined_edges(picture.image_HWC, mask) / 255).astype(np.float32), picture.truth_HW)
    assert asdict(refined.datasets[0].scores) == pytest.approx(asdict(meter.scores()), abs=1e-6)
    assert refined.datasets[0].scores != plain.datasets[0].scores
    assert "its edges refined" in markdown(values_of(refined))
    assert "its edges refined" not in markdown(values_of(plain))


def test_pictures_without_masks_are_refused(bench_models, picture_folder):
    with pytest.raises(UsageError, match="holds pictures and no masks"):
        measure_accuracy(AccuracyConfig(model=bench_models.onnx, datasets=(picture_folder,), threads=1))


def test_command(bench_models, data_set, tmp_path):
    common = ["accuracy", str(bench_models.onnx), str(data_set), "--threads", "1"]
    answer = CliRunner().invoke(app, [*common, "--panels", "--json", "-o", str(tmp_path / "a.json")])
    assert answer.exit_code == 0, answer.output
    values = json.loads(answer.stdout)
    assert values["datasets"][0]["pictures"] == 3
    assert json.loads((tmp_path / "a.json").read_text()) == values
    page = tmp_path / "a.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "a.json"), "-o", str(page)]).exit_code == 0
    assert page.read_text().count("<img") == 18  # three images of three pictures, as best and as worst
    for axis in ("recall, 0..1", "precision, 0..1", "threshold of the mask, 0..1"):
        assert axis in page.read_text()
    assert CliRunner().invoke(app, ["accuracy", "lite"]).exit_code == 2


def test_parity_shows_photo_truth_masks_and_heat(bench_models, data_set):
    config = ParityConfig(
        reference=bench_models.checkpoint,
        candidates=(bench_models.damaged,),
        pictures=data_set,
        backends=("onnxruntime",),
        threads=1,
        panels=True,
    )
    result = measure_parity(config)
    (row,) = result.candidates
    assert {panel.name for panel in result.panels} == set(row.report.worst.values())
    said = [label.split(",")[0] for label, _ in result.panels[0].images]
    assert said == ["photo", "truth", "reference mask", "candidate mask", "difference"]
    assert "worst in" in result.panels[0].caption
    assert "What each candidate uses of its contract" in page([values_of(result)], [result.panels])


def with_border(data_set):
    """The masks as label maps, 1 in a border of 255 that is left out."""
    for path in (data_set / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        border = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > mask
        write_png(path, np.where(border, 255, mask > 0).astype(np.uint8))
    return data_set


def test_label_maps_are_refused_as_training_refuses_them(bench_models, data_set):
    with_border(data_set)
    with pytest.raises(MaskValuesError) as told:
        load_pairs(find_pairs([data_set]), 64)
    for measure in (
        lambda: measure_accuracy(AccuracyConfig(model=bench_models.onnx, datasets=(data_set,), threads=1)),
        lambda: measure_parity(ParityConfig(reference=bench_models.checkpoint, pictures=data_set, threads=1)),
    ):
        with pytest.raises(MaskValuesError) as caught:
            measure()
        assert str(caught.value) == str(told.value)


def test_what_label_maps_leave_out_is_not_scored(bench_models, data_set):
    with open_model(bench_models.onnx, threads=1) as model:
        masks = {p.name: model.mask(p.image_HWC) for p in Pictures(data_set)}
    with_border(data_set)
    config = AccuracyConfig(model=bench_models.onnx, datasets=(data_set,), threads=1, mask_values="labels")
    (row,) = measure_accuracy(config).datasets
    errors = []
    for path in (data_set / "masks").iterdir():
        labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        errors.append(np.abs(masks[path.stem] - labels)[labels < 255].mean())
    assert row.scores.mae == pytest.approx(np.mean(errors), abs=1e-5)
    assert row.found["left_out"] == 3
    with pytest.raises(MaskValuesError, match="no mask holds a label"):
        measure_accuracy(replace(config, datasets=(_binary(data_set),)))


def _binary(data_set):
    for path in (data_set / "masks").iterdir():
        write_png(path, np.where(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) == 1, np.uint8(255), np.uint8(0)))
    return data_set


def test_measures_leave_out_what_is_not_known():
    """Whatever stands there; of all measures alike."""
    rng = np.random.default_rng(0)
    mask, truth = rng.random((60, 80), np.float32), (rng.random((60, 80)) > 0.5).astype(np.float32)
    ignored = np.zeros(mask.shape, bool)
    ignored[10:30, 20:50] = True
    scores = []
    for inside in (0.0, 1.0):
        meter = SaliencyMeter()
        own = meter.add(np.where(ignored, np.float32(inside), mask), np.where(ignored, 1 - truth, truth), ignored)
        scores.append((meter.scores(), own))
    assert scores[0] == scores[1]
    assert scores[0][1]["mae"] == pytest.approx(np.abs(mask - truth)[~ignored].mean(), abs=1e-6)


def test_pairs_that_cannot_be_scored_are_named_and_the_others_scored(bench_models, data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("bad", "lone", "odd"):
        shutil.copy(data_set / "images/disc0.png", data_set / f"images/{name}.png")
        shutil.copy(data_set / "masks/disc0.png", data_set / f"masks/{name}.png")
    (data_set / "masks/bad.png").write_bytes(b"half a mask")
    (data_set / "masks/lone.png").unlink()

    def explode(data, name, values):
        if name == "odd":
            raise AttributeError("a defect")
        return decode_mask(data, name, values)

    monkeypatch.setattr(datasets, "decode_mask", explode)
    answer = CliRunner().invoke(app, ["accuracy", str(bench_models.onnx), str(data_set), "--threads", "1", "--json"])
    assert answer.exit_code == 1
    (row,) = json.loads(answer.stdout)["datasets"]
    assert row["pictures"] == 3
    errors = {failure["name"]: failure["error"] for failure in row["failures"]}
    assert errors.keys() == {"bad", "images/lone.png", "odd"}
    assert "11 bytes that are no readable picture" in errors["bad"]
    assert "unexpected: AttributeError: a defect; traceback in" in errors["odd"]
    assert answer.stderr.splitlines()[-1].startswith("error: 3 pairs were not scored: ")
    assert "in explode" in next((tmp_path / "state").rglob("*.log")).read_text()
    assert "Traceback" not in answer.stderr
    for line in ("3 pairs", "1 pairs that cannot be read, skipped (bad)", "1 pictures without a mask, skipped"):
        assert f"set: {line}" in answer.stderr


def test_what_a_model_does_not_survive_fails_that_picture(bench_models, data_set, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    real = SaliencyModel.mask
    calls = iter(range(9))

    def mask(model, image_HWC):
        if next(calls) == 1:
            raise ZeroDivisionError
        return real(model, image_HWC)

    monkeypatch.setattr(SaliencyModel, "mask", mask)
    config = AccuracyConfig(model=bench_models.onnx, datasets=(data_set,), threads=1)
    report = measure_accuracy(config)
    assert (report.datasets[0].scores.pictures, report.exit_code) == (2, 1)
    assert "disc1: unexpected: ZeroDivisionError" in report.complaint
    for path in (data_set / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"set: none of 3 pairs can be scored \(disc0: 0 bytes"):
        measure_accuracy(config)


def test_linked_folders_and_masks_beside_their_pictures_are_data_sets(bench_models, data_set, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("images", "masks"):
        (linked / name).symlink_to(data_set / name)
    (data_set / "images/cycle").symlink_to(linked)
    beside = tmp_path / "beside"
    beside.mkdir()
    for path in (data_set / "images").glob("*.png"):
        cv2.imwrite(str(beside / f"{path.stem}.jpg"), cv2.imread(str(path)))
        shutil.copy(data_set / "masks" / path.name, beside)
    for folder in (linked, beside):
        pictures = list(Pictures(folder))
        assert [picture.name for picture in pictures] == ["disc0", "disc1", "disc2"]
        assert all(picture.truth_HW is not None for picture in pictures)


class Fixed:
    """A model that always gives one mask."""

    takes_frames = False

    def __init__(self, mask_HW):
        self._mask_HW = mask_HW

    def mask(self, _):
        return self._mask_HW


def test_parity_compares_scores_where_the_truth_is_known():
    mask = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    other = mask.copy()
    other[:16] = 1 - other[:16]
    ignored = np.zeros(mask.shape, bool)
    ignored[:16] = True
    picture = Picture(name="a", image_HWC=np.zeros((64, 64, 3), np.uint8), truth_HW=np.rint(mask))
    changes = [
        compare(Fixed(mask), Fixed(other), [replace(picture, ignored_HW=left_out)], tolerance_for("fp32")).mae_change
        for left_out in (None, ignored)
    ]
    assert changes[0] > 0.1
    assert changes[1] == 0
