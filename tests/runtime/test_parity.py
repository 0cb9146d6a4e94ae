"""The comparison itself, on masks made by hand: no network, every limit, NaN, flat references, rounded masks."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from basnet_runtime.api import Predictor
from basnet_runtime.parity import ParityReport, Picture, compare, tolerance_for
from basnet_torch.errors import ParityError, UsageError
from basnet_torch.metrics import boundary_iou


class Masks:
    """Gives the mask that belongs to a picture, changed by `change`."""

    def __init__(self, change=lambda mask: mask, *, takes_frames=False):
        self.change = change
        self.takes_frames = takes_frames

    def mask(self, image_HWC):
        mask = self.change(image_HWC[..., 0].astype(np.float32) / 255)
        return np.rint(mask * 255).astype(np.float32) / np.float32(255) if self.takes_frames else mask


def disc(name="disc", size=100, inside=240, outside=10, truth=False):
    y, x = np.mgrid[:size, :size]
    mask = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 4) ** 2
    image = np.where(mask, inside, outside).astype(np.uint8)
    return Picture(
        name=name,
        image_HWC=np.repeat(image[..., None], 3, axis=2),
        truth_HW=mask.astype(np.float32) if truth else None,
    )


def measured(change, precision="fp32", pictures=None, **options):
    return compare(Masks(), Masks(change, **options), pictures or [disc()], tolerance_for(precision))


def limits(precision):
    values = asdict(tolerance_for(precision))
    return {name: value for name, value in values.items() if value is not None and name != "precision"}


def test_equal_masks_pass():
    report = measured(lambda mask: mask)
    assert report
    assert (report.max_abs, report.flips, report.boundary_iou, report.informative) == (0, 0, 1, 1)
    assert "passed" in str(report)
    report.raise_if_failed()


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", "p999_abs"), ("fp16", "mean_abs"), ("bf16", "mean_abs"), ("int8", "mean_abs")]
)
def test_limits_are_judged_on_both_sides(precision, limit):
    allowed = getattr(tolerance_for(precision), limit)
    assert measured(lambda mask: mask + np.float32(0.9 * allowed), precision)
    report = measured(lambda mask: mask + np.float32(1.1 * allowed), precision)
    assert not report
    with pytest.raises(ParityError, match=rf"{limit} is .* on disc, at most"):
        report.raise_if_failed()


def test_one_pixel_is_judged_where_the_largest_difference_is():
    def one(by):
        def change(mask):
            mask = mask.copy()
            mask[3, 4] += np.float32(by)
            return mask

        return change

    assert measured(one(9e-5))
    assert measured(one(1.1e-4)).failures == ("max_abs is 0.00011 on disc, at most 0.0001",)


def shifted(by):
    return Masks(lambda mask: mask + np.float32(by))


@pytest.mark.parametrize(("off", "passes"), [(9e-5, True), (3.9e-4, True), (4.1e-4, False), (float("nan"), False)])
def test_fp32_may_be_twice_as_far_from_fp64_as_pytorch_is(off, passes):
    """In the largest difference and in the 99.9th percentile alike."""
    report = compare(Masks(), shifted(off), [disc()], tolerance_for("fp32"), pytorch_fp32=shifted(-2e-4))
    assert bool(report) == passes
    assert report.pytorch_fp32["max_abs"] == report.pytorch_fp32["p999_abs"] == pytest.approx(2e-4, rel=1e-3)
    assert report.tolerance.max_abs == report.tolerance.p999_abs == pytest.approx(4e-4, rel=1e-3)
    if not passes:
        with pytest.raises(ParityError, match=r"fp32 parity with PyTorch FP64 fails: .*max_abs is"):
            report.raise_if_failed()


def test_where_pytorch_is_near_fp64_the_limits_stay():
    report = compare(Masks(), shifted(6e-5), [disc()], tolerance_for("fp32"), pytorch_fp32=shifted(1e-5))
    assert report.tolerance == tolerance_for("fp32")
    assert report.failures == ("p999_abs is 6e-05 on disc, at most 5e-05",)
    report = compare(Masks(), shifted(6e-5), [disc()], tolerance_for("fp32"), pytorch_fp32=shifted(3.1e-5))
    assert report
    assert report.to_dict()["pytorch_fp32"]["p999_abs"] == pytest.approx(3.1e-5, rel=1e-2)


def ramp_moved(by, rows, span):
    """A ramp from left to right; in some rows the pixels within `span` of 0.5 are moved down by `by`, to `by` / 10."""

    def change(_):
        mask = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (400, 1))
        near = np.abs(mask[rows] - span[0]) < span[1]
        mask[rows] -= near * np.float32(by)
        return mask

    return Masks(change)


def test_only_the_real_flips_of_pytorch_fp32_widen_the_limit_of_flips():
    """PyTorch FP32 is off by .03 and moves no pixel across 0.5, so that a candidate may move 0.01 % of them."""
    reference, own = ramp_moved(0, slice(0), (0, 0)), ramp_moved(0.03, slice(2), (0.8, 0.19))
    report = compare(
        reference, ramp_moved(0.05, slice(50), (0.5, 0.05)), [disc()], tolerance_for("fp32"), pytorch_fp32=own
    )
    assert report.max_abs <= report.tolerance.max_abs == pytest.approx(0.06, rel=1e-3)
    assert report.pytorch_fp32["flips"] == 0
    assert [line.split(" on ")[0] for line in report.failures] == [f"flips is {report.flips:.3g}"]
    flipping = ramp_moved(0.05, slice(40), (0.5, 0.05))
    report = compare(reference, flipping, [disc()], tolerance_for("fp32"), pytorch_fp32=flipping)
    assert report.tolerance.flips == 2 * report.flips > 1e-3


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_pytorch_fp32_that_is_not_finite_widens_nothing(value):
    def broken(mask):
        return np.where(np.arange(mask.size).reshape(mask.shape) == 3, np.float32(value), mask + np.float32(1e-3))

    report = compare(Masks(), shifted(9e-4), [disc()], tolerance_for("fp32"), pytorch_fp32=Masks(broken))
    assert report.tolerance == tolerance_for("fp32")
    with pytest.raises(ParityError, match=r"with PyTorch FP64 fails: max_abs is 0.0009 "):
        report.raise_if_failed()


def test_flips_and_boundary_are_judged():
    def moved(mask):
        return np.roll(mask, 2, axis=1)

    report = measured(moved, "int8")
    assert {reason.split()[0] for reason in report.failures} >= {"flips", "boundary_iou"}
    assert 0 < report.boundary_iou < 0.93


def test_the_worst_picture_counts_and_is_named():
    def change(mask):
        return mask + np.float32(0.01) if mask.shape[0] == 60 else mask

    report = measured(change, pictures=[disc("a"), disc("small", size=60), disc("c")])
    assert report.worst["max_abs"] == report.worst["mean_abs"] == "small"
    assert report.max_abs == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_not_a_number_fails(precision):
    def change(mask):
        mask = mask.copy()
        mask[0, 0] = np.nan
        return mask

    pictures = [disc("a", truth=True), disc("b", truth=True)]
    report = measured(change, precision, pictures)
    assert not report
    assert report.not_finite == ("a", "b")
    assert report.failures[0] == "not finite on 2 pictures, the first a"
    assert np.isnan(report.max_abs)
    assert np.isnan(report.mae_change)


@pytest.mark.parametrize(("inside", "outside"), [(128, 127), (0, 0), (255, 255), (140, 120)])
def test_a_flat_reference_proves_nothing(inside, outside):
    report = measured(lambda mask: mask, pictures=[disc(inside=inside, outside=outside)])
    assert not report
    assert report.flat
    with pytest.raises(ParityError, match="not proven: the reference masks are flat"):
        report.raise_if_failed()


def test_one_empty_picture_among_others_is_fine():
    assert measured(lambda mask: mask, pictures=[disc("a"), disc("b"), disc("empty", inside=3, outside=2)])


def test_rounding_to_bytes_is_no_difference_but_more_is():
    def smooth(mask):
        return np.clip(mask * np.float32(0.7311) + np.float32(0.1), 0, 1)

    reference = Masks(smooth)
    report = compare(reference, Masks(smooth, takes_frames=True), [disc()], tolerance_for("fp32"))
    assert report, str(report)
    off = Masks(lambda mask: smooth(mask) + np.float32(2 / 255), takes_frames=True)
    report = compare(reference, off, [disc()], tolerance_for("fp16"))
    assert not report
    assert report.mean_abs == pytest.approx(2 / 255, rel=0.05)


def test_scores_are_compared_where_truth_is_known():
    report = measured(lambda mask: mask * np.float32(0.9), "int8", [disc(truth=True)])
    assert report.mae_change == pytest.approx(0.1 * 240 / 255 * 0.195 - 0.1 * 10 / 255 * 0.805, abs=2e-3)
    assert report.max_f_change == 0
    assert measured(lambda mask: mask).mae_change is None


def test_a_fall_of_max_f_fails():
    report = measured(lambda mask: mask, "int8", [disc(truth=True)])
    assert replace(report, max_f_change=-0.004)
    assert not replace(report, max_f_change=-0.006)
    assert not replace(report, max_f_change=float("nan"))


def test_a_rise_of_mae_fails():
    report = measured(lambda mask: mask, "int8", [disc(truth=True)])
    assert replace(report, mae_change=-1.0)
    assert replace(report, mae_change=0.005)
    assert "MAE rises by 0.0060" in replace(report, mae_change=0.006).failures[0]
    assert not replace(report, mae_change=float("nan"))


def test_a_thousandth_of_the_pixels_is_judged():
    """A hundredth of the pixels differs by 0.06, which moves neither the mean beyond its limit nor the sides."""

    def change(mask):
        mask = mask.copy()
        mask[:10, :10] += np.float32(0.06)
        return mask

    report = measured(change, "fp16")
    assert report.p999_abs == pytest.approx(0.06, abs=1e-6)
    assert report.failures == ("p999_abs is 0.06 on disc, at most 0.05",)


def test_every_picture_has_its_own_row():
    pictures = [disc("a", truth=True), disc("b")]
    report = measured(lambda mask: mask * np.float32(0.9), "int8", pictures)
    first, second = report.differences
    assert (first.name, second.name) == ("a", "b")
    assert first.mae_change == pytest.approx(report.mae_change)
    assert second.mae_change is None
    assert first.max_abs == report.max_abs


def test_boundary_iou_of_shifted_squares():
    """A square of 60, boundary 2 wide (2 % of the diagonal of 71 x 71), moved by one column."""
    first = np.zeros((71, 71), bool)
    first[5:65, 5:65] = True
    second = np.roll(first, 1, axis=1)
    ring = 60 * 60 - 56 * 56
    kept = 2 * 2 * 59 + 2 * 56  # both bars across less a column, and one column of each bar down
    assert boundary_iou(first, second) == pytest.approx(kept / (2 * ring - kept))
    assert boundary_iou(np.zeros((9, 9), bool), np.zeros((9, 9), bool)) == 1


def test_report_is_plain_in_json():
    import json

    values = json.loads(json.dumps(measured(lambda mask: mask).to_dict()))
    assert values["passed"] is True
    assert values["tolerance"] == {"precision": "fp32", **limits("fp32")}
    assert "differences" not in values  # a receipt in a manifest does not list hundreds of pictures


def test_limits_are_no_looser_than_the_contract():
    assert limits("fp32") == {"max_abs": 1e-4, "p999_abs": 5e-5, "flips": 1e-4, "mae_rise": 1e-4, "max_f_drop": 1e-4}
    most = {"mean_abs": 1e-3, "p999_abs": 5e-2, "flips": 2e-3, "mae_rise": 1e-3, "max_f_drop": 1e-3}
    assert limits("fp16") == {**most, "boundary_iou": 0.98}
    most = {"mean_abs": 5e-3, "p999_abs": 0.3, "flips": 5e-3, "mae_rise": 3e-3, "max_f_drop": 3e-3}
    assert limits("bf16") == {**most, "boundary_iou": 0.97}
    most = {"mean_abs": 1e-2, "p999_abs": 0.5, "flips": 1.5e-2, "mae_rise": 5e-3, "max_f_drop": 5e-3}
    assert limits("int8") == {**most, "boundary_iou": 0.93}


def test_usage_is_checked():
    with pytest.raises(UsageError, match="there are none"):
        compare(Masks(), Masks(), [], tolerance_for("fp32"))
    with pytest.raises(UsageError, match="precision is 'fp64'"):
        tolerance_for("fp64")
    with pytest.raises(ParityError, match="must have one size"):
        compare(Masks(), Masks(lambda mask: mask[:5]), [disc()], tolerance_for("fp32"))


def test_report_is_a_value():
    assert isinstance(measured(lambda mask: mask), ParityReport)
    assert repr(disc()) == "Picture('disc', (100, 100, 3))"


def test_the_networks_own_masks_are_compared_whatever_the_verdict(make_model):
    """A threshold above every score empties all masks of `empty_weak`, and must hide nothing from the contract."""
    reference, candidate = make_model(), make_model()
    for model in (reference, candidate):
        model.postprocess = replace(model.postprocess, empty_below=1.0)
    assert not Predictor(reference)(disc().image_HWC, empty_weak=True).any()
    candidate.backend.infer = lambda batch, infer=candidate.backend.infer: infer(batch) * np.float32(0.9)
    report = compare(reference, candidate, [disc()], tolerance_for("fp32"))
    assert report.max_abs > 0.01
