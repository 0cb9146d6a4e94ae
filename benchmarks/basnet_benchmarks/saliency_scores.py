"""The measures that salient object detection is compared by, collected picture by picture.

meter = SaliencyMeter()
meter.add(mask_HW, truth_HW)
print(meter.scores().max_f)

Masks are scored as they are: nothing is stretched to a map's own range first, as some evaluation code does. F curves,
S-, E- and weighted F-measure come from PySODMetrics. What has thresholds, the F and E curves, is taken of masks in 256
levels, as they are saved.

Where a truth leaves pixels out, what is counted pixel by pixel (MAE, F, E, IoU) is counted without them; what looks at
shapes (S, weighted F, boundaries) sees background there in mask and truth alike.

Legend: H height, W width of the picture; masks are float32 in 0..1, truth is foreground above 0.5.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.parity import boundary_iou
from basnet_torch.errors import BackendUnavailable
from basnet_torch.metrics import BETA_SQUARED, AccuracyMeter, absolute_error, counted

__all__ = ["SaliencyCurves", "SaliencyMeter", "SaliencyScores", "relaxed_boundary_f"]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
_SLACK = 3  # pixels; BASNet, section 4.2


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyScores:
    """Of a set of pictures; of `mae` less is better, of the others more.

    Attributes:
        pictures: How many.
        max_f: Largest F of the mean precision and mean recall per threshold, beta^2 = 0.3: the paper's maxF.
        max_f_curve: Largest value of the mean of the pictures' own F curves, which PySODMetrics calls maximal F.
        mean_f: Mean of that curve.
        weighted_f: Weighted F-measure (Margolin et al. 2014), beta^2 = 1.
        s_measure: Structure measure (Fan et al. 2017), alpha = 0.5.
        e_max: Largest value of the mean E-measure curve (Fan et al. 2018).
        e_mean: Mean of that curve.
        mae: Mean absolute error.
        relaxed_boundary_f: F of the boundaries at 0.5 with 3 pixels of slack, mean over pictures.
        boundary_iou: Boundary IoU at 0.5 (Cheng et al. 2021), mean over pictures.
    """

    pictures: int
    max_f: float
    max_f_curve: float
    mean_f: float
    weighted_f: float
    s_measure: float
    e_max: float
    e_mean: float
    mae: float
    relaxed_boundary_f: float
    boundary_iou: float

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyCurves:
    """Means over pictures at the thresholds 0..255; arrays of 256 values.

    Attributes:
        precision: Mean precision.
        recall: Mean recall.
        f: F of the two, whose largest value is `max_f`.
        f_of_pictures: Mean of the pictures' own F, whose largest value is `max_f_curve`.
        e: Mean E-measure.
    """

    precision: Float64
    recall: Float64
    f: Float64
    f_of_pictures: Float64
    e: Float64

    def to_dict(self) -> dict[str, list[float]]:
        """Plain values for JSON, four decimals each."""
        return {field.name: getattr(self, field.name).round(4).tolist() for field in fields(self)}


class SaliencyMeter:
    """Collects pictures one by one; each mask and truth at the picture's own size.

    Raises:
        BackendUnavailable: PySODMetrics is not installed.
    """

    def __init__(self) -> None:
        sod = _pysodmetrics()
        self._accuracy = AccuracyMeter()
        f_curve = sod.FmeasureHandler(beta=BETA_SQUARED, with_adaptive=False, with_dynamic=True)
        self._f = sod.FmeasureV2(metric_handlers={"f": f_curve})
        self._weighted, self._s, self._e = sod.WeightedFmeasure(), sod.Smeasure(), sod.Emeasure()
        self._boundary: list[float] = []
        self._relaxed: list[float] = []

    def add(self, mask_HW: Float32, truth_HW: Float32, ignored_HW: Bool | None = None) -> dict[str, float]:
        """Count one picture; returns its own MAE and IoU at 0.5, by which the best and worst are found.

        Raises:
            ValueError: When the two differ in size or the mask holds a value that is not finite.
        """
        self._accuracy.add(mask_HW, truth_HW, ignored_HW)
        error = absolute_error(mask_HW, truth_HW, ignored_HW)
        if ignored_HW is not None:
            mask_HW, truth_HW = (np.where(ignored_HW, np.float32(0), values) for values in (mask_HW, truth_HW))
        truth, mask = truth_HW > 0.5, mask_HW > 0.5
        clipped = mask_HW.clip(0, 1)
        saved = np.rint(clipped * 255) / 255
        for measure in (self._f, self._e):
            measure.step(pred=counted(saved, ignored_HW), gt=counted(truth, ignored_HW), normalize=False)
        for measure in (self._weighted, self._s):
            measure.step(pred=clipped, gt=truth, normalize=False)
        self._boundary.append(boundary_iou(mask, truth))
        self._relaxed.append(relaxed_boundary_f(mask, truth))
        union = int(np.count_nonzero(mask | truth))
        iou = int(np.count_nonzero(mask & truth)) / union if union else 1.0
        return {"mae": error, "iou": iou}

    def curves(self) -> SaliencyCurves:
        """By threshold, over all pictures so far.

        Raises:
            ValueError: When there are none.
        """
        own = self._accuracy.curves()
        return SaliencyCurves(
            precision=own.precision,
            recall=own.recall,
            f=own.f,
            f_of_pictures=np.asarray(self._f.get_results()["f"]["dynamic"])[::-1],  # theirs fall from 255 to 0
            e=np.asarray(self._e.get_results()["em"]["curve"])[::-1],
        )

    def scores(self) -> SaliencyScores:
        """Of all pictures so far.

        Raises:
            ValueError: When there are none.
        """
        accuracy, curves = self._accuracy.scores(), self.curves()
        return SaliencyScores(
            pictures=accuracy.pictures,
            max_f=accuracy.max_f,
            max_f_curve=float(curves.f_of_pictures.max()),
            mean_f=float(curves.f_of_pictures.mean()),
            weighted_f=float(self._weighted.get_results()["wfm"]),
            s_measure=float(self._s.get_results()["sm"]),
            e_max=float(curves.e.max()),
            e_mean=float(curves.e.mean()),
            mae=accuracy.mae,
            relaxed_boundary_f=math.fsum(self._relaxed) / len(self._relaxed),
            boundary_iou=math.fsum(self._boundary) / len(self._boundary),
        )


def relaxed_boundary_f(mask_HW: Bool, truth_HW: Bool) -> float:
    """F, beta^2 = 0.3, of one-pixel boundaries, where a pixel counts as found within 3 pixels (BASNet, section 4.2).

    >>> square = np.zeros((40, 40), bool)
    >>> square[10:30, 10:30] = True
    >>> relaxed_boundary_f(square, square), relaxed_boundary_f(np.roll(square, 3, 0), square)
    (1.0, 1.0)
    >>> relaxed_boundary_f(square, np.zeros_like(square))
    0.0
    """
    mask, truth = _outline(mask_HW), _outline(truth_HW)
    if not mask.any() and not truth.any():
        return 1.0
    precision, recall = _share_near(mask, truth), _share_near(truth, mask)
    weighted = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / weighted if weighted else 0.0


def _outline(mask_HW: Bool) -> Bool:
    """The mask's pixels that an erosion by one removes; the picture's edge is none."""
    import cv2

    inner = cv2.erode(mask_HW.astype(np.uint8), np.ones((3, 3), np.uint8))
    return cast(Bool, mask_HW & (inner == 0))


def _share_near(points_HW: Bool, others_HW: Bool) -> float:
    """Share of the points that have one of the others within the slack."""
    import cv2

    count = int(np.count_nonzero(points_HW))
    if not count or not others_HW.any():
        return 0.0
    distance = cv2.distanceTransform((~others_HW).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return int(np.count_nonzero(points_HW & (distance <= _SLACK))) / count


def _pysodmetrics() -> Any:
    try:
        import py_sod_metrics
    except ImportError as error:
        raise BackendUnavailable("PySODMetrics is not installed; pip install 'basnet-deploy[accuracy]'") from error
    return py_sod_metrics
