"""The scores equal a plain loop over thresholds and PySODMetrics."""

import numpy as np
import pytest
from py_sod_metrics import MAE, FmeasureHandler, FmeasureV2

from basnet_torch.metrics import AccuracyMeter


def random_cases(count=6):
    rng = np.random.default_rng(1)
    for _ in range(count):
        truth = np.zeros((40, 50), np.float32)
        truth[10:25, 12 : int(rng.integers(20, 48))] = 1
        levels = np.clip(truth * 150 + rng.integers(0, 106, truth.shape), 0, 255).astype(np.uint8)
        levels[0, 0], levels[0, 1] = 0, 255  # PySODMetrics stretches every map to its own range
        yield levels, truth


def test_against_a_plain_loop():
    meter, precisions, recalls, errors = AccuracyMeter(), [], [], []
    for levels, truth in random_cases():
        meter.add(levels.astype(np.float32) / 255, truth)
        marked = [levels >= t for t in range(256)]
        precisions.append([(truth[m] > 0.5).mean() if m.any() else 0 for m in marked])
        recalls.append([(truth[m] > 0.5).sum() / truth.sum() for m in marked])
        errors.append(np.abs(levels / 255 - truth).mean())
    p, r = np.mean(precisions, 0), np.mean(recalls, 0)
    f = 1.3 * p * r / np.maximum(0.3 * p + r, 1e-12)
    scores = meter.scores()
    assert scores.max_f == pytest.approx(f.max(), abs=1e-9)
    assert scores.mae == pytest.approx(np.mean(errors), abs=1e-6)
    assert scores.pictures == 6


def test_against_pysodmetrics_on_one_picture():
    """On a single picture the mean curve and the mean of precision and recall are the same number."""
    levels, truth = next(random_cases())
    f = FmeasureV2(metric_handlers={"fm": FmeasureHandler(beta=0.3, with_adaptive=False, with_dynamic=True)})
    meter, mae = AccuracyMeter(), MAE()
    meter.add(levels.astype(np.float32) / 255, truth)
    for theirs in (f, mae):
        theirs.step(pred=levels, gt=(truth * 255).astype(np.uint8))
    assert meter.scores().max_f == pytest.approx(f.get_results()["fm"]["dynamic"].max(), abs=1e-6)
    assert meter.scores().mae == pytest.approx(mae.get_results()["mae"], abs=1e-6)


@pytest.mark.parametrize(("mask", "truth", "max_f"), [(0, 0, 0.0), (1, 1, 1.0), (0, 1, 1.0), (1, 0, 0.0)])
def test_empty_and_full_maps(mask, truth, max_f):
    """Every map is foreground at threshold 0, so an empty map on a full truth still scores 1 there."""
    meter = AccuracyMeter()
    meter.add(np.full((8, 8), mask, np.float32), np.full((8, 8), truth, np.float32))
    assert meter.scores().max_f == max_f
    assert meter.scores().mae == abs(mask - truth)


def test_refuses_what_cannot_be_scored():
    meter = AccuracyMeter()
    with pytest.raises(ValueError, match="none were added"):
        meter.scores()
    with pytest.raises(ValueError, match="one size"):
        meter.add(np.zeros((2, 2), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        meter.add(np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), np.float32))
