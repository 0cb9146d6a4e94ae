"""MAE, maximal F-measure and boundary IoU as the field reports them.

maxF here is the paper's convention: precision and recall of the map thresholded at each of 0..255, averaged over the
pictures per threshold, F of those means with beta^2 = 0.3, the largest (Achanta et al. 2009; BASNet section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Bool

__all__ = ["BETA_SQUARED", "AccuracyMeter", "Curves", "Scores", "absolute_error", "boundary_iou", "counted", "f_of"]

BETA_SQUARED = 0.3
_LEVELS = 256
_BOUNDARY_SHARE = 0.02  # of the diagonal: Cheng et al., "Boundary IoU", CVPR 2021, section 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of a set of pictures: `max_f` higher is better, `mae` lower is better."""

    max_f: float
    mae: float
    threshold: int
    pictures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """Means over pictures at each threshold 0..255, and the F-measure of these means.

    Arrays of 256 values in 0..1.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f: NDArray[np.float64]


class AccuracyMeter:
    """Collects pictures one by one; each mask and truth at the picture's own size.

    >>> meter = AccuracyMeter()
    >>> truth = np.array([[0.0, 1.0]], np.float32)
    >>> meter.add(truth, truth)
    >>> meter.scores()
    Scores(max_f=1.0, mae=0.0, threshold=1, pictures=1)
    """

    def __init__(self) -> None:
        self._precision = np.zeros(_LEVELS)
        self._recall = np.zeros(_LEVELS)
        self._absolute = 0.0
        self._pictures = 0

    def add(
        self, mask_HW: NDArray[np.float32], truth_HW: NDArray[np.float32], ignored_HW: NDArray[np.bool_] | None = None
    ) -> None:
        """Count one picture: `mask_HW` and `truth_HW` in 0..1, foreground above 0.5.

        Ignored pixels do not count.

        Raises:
            ValueError: When the two differ in size or the mask holds a value that is not finite.
        """
        if mask_HW.shape != truth_HW.shape:
            raise ValueError(f"mask is {mask_HW.shape} and truth {truth_HW.shape}; they must have one size")
        if not np.isfinite(mask_HW).all():
            raise ValueError("mask holds values that are not finite")
        mask_HW, truth_HW = counted(mask_HW, ignored_HW), counted(truth_HW, ignored_HW)
        precision, recall = _curves(mask_HW, truth_HW > 0.5)
        self._precision += precision
        self._recall += recall
        self._absolute += absolute_error(mask_HW, truth_HW)
        self._pictures += 1

    def curves(self) -> Curves:
        """Precision, recall and F by threshold, over all pictures so far.

        Raises:
            ValueError: When there are none.
        """
        if not self._pictures:
            raise ValueError("pictures: none were added, so there is nothing to score")
        precision, recall = self._precision / self._pictures, self._recall / self._pictures
        return Curves(precision=precision, recall=recall, f=f_of(precision, recall))

    def scores(self) -> Scores:
        """Scores over all pictures so far.

        Raises:
            ValueError: When there are none.
        """
        f = self.curves().f
        best = int(f.argmax())
        mae = self._absolute / self._pictures
        return Scores(max_f=float(f[best]), mae=mae, threshold=best, pictures=self._pictures)


def counted(values_HW: NDArray[Any], ignored_HW: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return the values outside `ignored_HW` in one row; all, H,W, where none is."""
    return values_HW if ignored_HW is None else values_HW[None, ~ignored_HW]


def absolute_error(
    mask_HW: NDArray[np.float32], truth_HW: NDArray[np.float32], ignored_HW: NDArray[np.bool_] | None = None
) -> float:
    """Mean over the pixels that count.

    >>> absolute_error(np.float32([[0, 1]]), np.float32([[1, 1]]), np.array([[True, False]]))
    0.0
    """
    return float(np.abs(counted(mask_HW, ignored_HW) - counted(truth_HW, ignored_HW)).mean(dtype=np.float64))


def f_of(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the F-measure, beta^2 = 0.3 (Achanta et al. 2009, equation 6).

    It is 0 where precision and recall both are.

    >>> f_of(np.array([1.0, 0.0]), np.array([0.5, 0.0])).round(4)
    array([0.8125, 0.    ])
    """
    weighted = BETA_SQUARED * precision + recall
    return np.divide((1 + BETA_SQUARED) * precision * recall, weighted, out=np.zeros_like(weighted), where=weighted > 0)


def _curves(mask_HW: NDArray[np.float32], truth_HW: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Precision and recall of `mask >= t` for t in 0..255, from two histograms.

    Nothing predicted counts as precision 0, and nothing to find as recall 0.
    """
    levels = np.rint(mask_HW.clip(0, 1) * 255).astype(np.uint8)
    found = np.bincount(levels[truth_HW], minlength=_LEVELS)[::-1].cumsum()[::-1].astype(np.float64)
    marked = np.bincount(levels.ravel(), minlength=_LEVELS)[::-1].cumsum()[::-1].astype(np.float64)
    total = float(truth_HW.sum())
    precision = np.divide(found, marked, out=np.zeros(_LEVELS), where=marked > 0)
    return precision, found / total if total else np.zeros(_LEVELS)


def boundary_iou(first_HW: Bool, second_HW: Bool) -> float:
    """Return the boundary IoU of two masks (Cheng et al. 2021).

    Boundaries are 2 % of the diagonal wide; 1 when neither mask has one.

    >>> square = np.zeros((50, 50), bool)
    >>> square[10:40, 10:40] = True
    >>> boundary_iou(square, square), boundary_iou(square, ~square)
    (1.0, 0.0)
    """
    first, second = _boundary(first_HW), _boundary(second_HW)
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else 1.0


def _boundary(mask_HW: Bool) -> Bool:
    """The mask's pixels that its erosion removes; the picture's edge counts as outside."""
    import cv2

    width = max(1, round(_BOUNDARY_SHARE * float(np.hypot(*mask_HW.shape))))
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(
        mask_HW.astype(np.uint8), kernel, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,)
    )
    return cast(Bool, mask_HW & (inner == 0))
