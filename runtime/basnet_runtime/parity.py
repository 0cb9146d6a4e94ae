"""Parity: does a deployed model give the trained one's masks, by `parity.toml`.

report = compare(reference, candidate, pictures, tolerance_for("fp16"))
report.raise_if_failed()

The worst picture counts and a value that is not finite fails. FP32 is compared with PyTorch FP64, from which it may be
twice as far as PyTorch FP32 itself is; the other precisions by PyTorch FP32. Where the reference's own masks are flat,
as random weights give them, everything agrees with everything: that is reported as not proven, which is no pass.

Legend: H height, W width of the picture; masks are float32 in 0..1.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

import numpy as np

from basnet_runtime.kinds import Precision
from basnet_torch.arrays import Bool, Float32, UInt8
from basnet_torch.errors import ParityError, UsageError
from basnet_torch.metrics import boundary_iou

if TYPE_CHECKING:
    from basnet_torch.metrics import AccuracyMeter, Scores

__all__ = [
    "MEASURES",
    "Difference",
    "MaskModel",
    "ParityReport",
    "Picture",
    "Tolerance",
    "compare",
    "difference",
    "tolerance_for",
    "worst_of",
]


MEASURES = ("max_abs", "mean_abs", "p999_abs", "flips", "boundary_iou")  # of boundary_iou more is better
_WIDENED = ("max_abs", "p999_abs", "flips")
_LIMITS = Path(__file__).with_name("parity.toml")
_HALF_STEP = 0.5 / 255
_CONTRAST = 0.5  # a reference mask whose values span less than this is flat
_OWN = 2  # times PyTorch FP32's own distance from FP64 is what another FP32 may have
_SIDE_SHARE = 0.001  # and so is one with less than this share of its pixels on one side of 0.5


class MaskModel(Protocol):
    """What is compared: `SaliencyModel`, or anything with the same `mask`."""

    @property
    def takes_frames(self) -> bool:
        """Whether its masks are rounded to 1/255, as the `frame` graph gives them."""

    def mask(self, image_HWC: UInt8, /) -> Float32:
        """Return the network's mask H,W, unemptied: emptying would hide differences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture to compare on.

    Attributes:
        name: For people.
        image_HWC: uint8 RGB.
        truth_HW: Its true mask in 0..1, where that is known.
        ignored_HW: Where nothing is known of that mask, which no score may count; None where all is.
    """

    name: str
    image_HWC: UInt8
    truth_HW: Float32 | None = None
    ignored_HW: Bool | None = None

    def __repr__(self) -> str:
        return f"Picture({self.name!r}, {self.image_HWC.shape})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """The most a file may differ from the reference; None does not judge a value.

    Attributes:
        precision: What it is for.
        max_abs: Largest absolute difference of any pixel.
        mean_abs: Mean absolute difference of a picture.
        p999_abs: 99.9th percentile of a picture's absolute differences.
        flips: Share of a picture's pixels that change side at 0.5.
        boundary_iou: Least boundary IoU of a picture's masks at 0.5.
        mae_rise: Most that the mean absolute error may rise, where truth is known.
        max_f_drop: Most that maxF may fall, where truth is known.
    """

    precision: Precision
    max_abs: float | None = None
    mean_abs: float | None = None
    p999_abs: float | None = None
    flips: float | None = None
    boundary_iou: float | None = None
    mae_rise: float | None = None
    max_f_drop: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One picture's masks, how far they lie apart.

    Attributes:
        name: The picture's.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        p999_abs: 99.9th percentile of the absolute difference.
        flips: Share of pixels that change side at 0.5.
        boundary_iou: Boundary IoU at 0.5.
        finite: Whether the candidate's mask holds finite values only.
        informative: Whether the reference finds an object.
        mae_change: Mean absolute error, candidate minus reference; None without truth or where a mask is not finite.
    """

    name: str
    max_abs: float
    mean_abs: float
    p999_abs: float
    flips: float
    boundary_iou: float
    finite: bool = True
    informative: bool = True
    mae_change: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """Measured differences, each the worst picture's; true when every limit holds.

    Flat masks prove nothing.

    Attributes:
        tolerance: The limits.
        pictures: How many were compared.
        informative: On how many of them the reference finds an object.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        p999_abs: 99.9th percentile of the absolute difference.
        flips: Share of pixels that change side at 0.5.
        boundary_iou: Boundary IoU at 0.5.
        worst: For each of the five, the picture's name.
        mae_change: Candidate minus reference, where truth is known.
        max_f_change: Candidate minus reference, where truth is known.
        pytorch_fp32: PyTorch FP32's own distances where the reference is FP64, which may widen limits, on the pictures
            where both are finite; None elsewhere.
        differences: Every picture's own, in the order they came.
    """

    tolerance: Tolerance
    pictures: int
    informative: int
    max_abs: float
    mean_abs: float
    p999_abs: float
    flips: float
    boundary_iou: float
    worst: Mapping[str, str]
    mae_change: float | None = None
    max_f_change: float | None = None
    pytorch_fp32: Mapping[str, float] | None = None
    differences: tuple[Difference, ...] = field(default=(), repr=False)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Name the pictures on which the candidate's mask is not finite."""
        return tuple(row.name for row in self.differences if not row.finite)

    @property
    def flat(self) -> bool:
        """Tell whether the reference finds objects in less than half of the pictures.

        Agreement then proves little.
        """
        return 2 * self.informative < max(self.pictures, 1)

    @property
    def exceeded(self) -> tuple[str, ...]:
        """Each limit that does not hold, in one line, whether or not the masks are flat."""
        found = tuple(filter(None, (self._judge(name) for name in MEASURES)))
        if self.not_finite:
            found = (f"not finite on {len(self.not_finite)} pictures, the first {self.not_finite[0]}", *found)
        found += _worsened("maxF falls", self.max_f_change, -1, self.tolerance.max_f_drop)
        return found + _worsened("MAE rises", self.mae_change, 1, self.tolerance.mae_rise)

    @property
    def failures(self) -> tuple[str, ...]:
        """Each reason it did not pass, in one line; empty when it passed."""
        if not self.flat:
            return self.exceeded
        seen = f"an object in {self.informative} of {self.pictures} pictures"
        flat = f"not proven: the reference masks are flat ({seen}); take trained weights, pictures with objects"
        return (*self.exceeded, flat)

    def __bool__(self) -> bool:
        return not self.failures

    def _judge(self, name: str) -> str | None:
        value, limit = getattr(self, name), getattr(self.tolerance, name)
        # Written so that NaN, which compares false with everything, fails.
        if limit is None or (value >= limit if name == "boundary_iou" else value <= limit):
            return None
        bound = "at least" if name == "boundary_iou" else "at most"
        return f"{name} is {value:.3g} on {self.worst[name]}, {bound} {limit:g}"

    def raise_if_failed(self, what: str = "model") -> None:
        """Raise ParityError with every reason unless the report passed."""
        if self.failures:
            exact = "FP32" if self.pytorch_fp32 is None else "PyTorch FP64"
            raise ParityError(
                f"{what}: {self.tolerance.precision} parity with {exact} fails: {'; '.join(self.failures)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: measures, limits and verdict, without single pictures."""
        limits = {k: v for k, v in asdict(self.tolerance).items() if v is not None}
        values = {name: getattr(self, name) for name in self.__slots__ if name != "differences"}
        said = {"worst": dict(self.worst), "not_finite": list(self.not_finite), "tolerance": limits}
        return {**values, **said, "passed": bool(self)}

    def __str__(self) -> str:
        verdict = "passed" if self else "failed: " + "; ".join(self.failures)
        return (
            f"{self.tolerance.precision} parity on {self.pictures} pictures: max {self.max_abs:.2g}, "
            f"99.9 % {self.p999_abs:.2g}, mean {self.mean_abs:.2g}, flips {100 * self.flips:.3f} %, "
            f"boundary IoU {self.boundary_iou:.4f}; {verdict}"
        )


def _worsened(what: str, change: float | None, sign: int, limit: float | None) -> tuple[str, ...]:
    """The complaint when a score moved to the worse by more than the limit, or is not finite."""
    if limit is None or change is None or sign * change <= limit:
        return ()
    return (f"{what} by {sign * change:.4f}, at most {limit:g}",)


def tolerance_for(precision: Precision) -> Tolerance:
    """The limits of `parity.toml`.

    >>> tolerance_for("fp32").max_abs
    0.0001
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}")
    with _LIMITS.open("rb") as file:
        return Tolerance(precision=precision, **tomllib.load(file)[precision])


def compare(
    reference: MaskModel,
    candidate: MaskModel,
    pictures: Iterable[Picture],
    tolerance: Tolerance,
    *,
    pytorch_fp32: MaskModel | None = None,
) -> ParityReport:
    """Run both models on every picture and measure how their masks differ.

    Masks are postprocessed to the picture's size.

    A `frame` graph rounds its masks to 1/255. Its mean and its scores are then taken between masks that are both
    rounded, which leaves the mean as it is, and its largest difference is what remains beyond half a step, which
    rounding alone explains; rounding moves no pixel across 0.5. Limits stay those of the precision.

    Args:
        reference: The masks to keep.
        candidate: The model to validate.
        pictures: What both see.
        tolerance: The limits.
        pytorch_fp32: The network in FP32 where `reference` is FP64: twice its own distance, where that is more than a
            limit, replaces it. An FP32 network with strong logits is itself farther from FP64 than a fixed limit.

    Raises:
        UsageError: When there is no picture.
    """
    rows, own, scores = list[Difference](), list[Difference](), _ScorePair()
    rounded = candidate.takes_frames and not reference.takes_frames
    for picture in pictures:
        want, got = reference.mask(picture.image_HWC), candidate.mask(picture.image_HWC)
        change = None
        if picture.truth_HW is not None:
            change = scores.add(picture, _rounded(want) if rounded else want, got)
        rows.append(replace(difference(picture.name, want, got, rounded=rounded), mae_change=change))
        if pytorch_fp32 is not None:
            apart = difference(picture.name, want, pytorch_fp32.mask(picture.image_HWC))
            if np.isfinite(apart.max_abs):  # an infinite distance would allow everything
                own.append(apart)
    if not rows:
        raise UsageError("pictures: there are none, so parity cannot be measured; give a folder of pictures")
    if pytorch_fp32 is None:
        return _report(rows, scores, tolerance)
    distances = worst_of(own)[0] if own else {}
    wider = {
        name: max(limit, _OWN * distances[name])
        for name in _WIDENED
        if name in distances and (limit := getattr(tolerance, name))
    }
    return replace(_report(rows, scores, replace(tolerance, **wider)), pytorch_fp32=distances)


def difference(name: str, want_HW: Float32, got_HW: Float32, *, rounded: bool = False) -> Difference:
    """How far two masks of one picture lie apart.

    Args:
        name: The picture's.
        want_HW: The reference's mask.
        got_HW: The candidate's.
        rounded: Whether only the candidate's is rounded to 1/255; see `compare`.

    Raises:
        ParityError: The two differ in size.
    """
    if want_HW.shape != got_HW.shape:
        raise ParityError(f"{name}: the masks are {want_HW.shape} and {got_HW.shape}; they must have one size")
    apart = np.abs(got_HW - want_HW)
    mean = apart.mean(dtype=np.float64)
    if rounded:
        mean = np.abs(got_HW - _rounded(want_HW)).mean(dtype=np.float64)
        apart = np.maximum(apart - _HALF_STEP, 0)
    want, got = want_HW > 0.5, got_HW > 0.5
    share = float(want.mean())
    return Difference(
        name=name,
        max_abs=float(apart.max()),
        mean_abs=float(mean),
        p999_abs=float(np.percentile(apart, 99.9)),
        flips=float(np.mean(want != got)),
        boundary_iou=boundary_iou(want, got),
        finite=bool(np.isfinite(got_HW).all()),
        informative=_SIDE_SHARE <= share <= 1 - _SIDE_SHARE and float(np.ptp(want_HW)) >= _CONTRAST,
    )


def _rounded(mask_HW: Float32) -> Float32:
    return cast(Float32, np.rint(mask_HW * 255) / np.float32(255))


class _ScorePair:
    """MAE and maxF of both models on the pictures whose truth is known."""

    def __init__(self) -> None:
        self._meters: tuple[AccuracyMeter, AccuracyMeter] | None = None
        self._broken = False

    def add(self, picture: Picture, want_HW: Float32, got_HW: Float32) -> float | None:
        """Count one picture and return its change of MAE; a mask that is not finite makes both sums NaN."""
        from basnet_torch.metrics import AccuracyMeter, absolute_error

        assert picture.truth_HW is not None  # noqa: S101 - `compare` has looked
        self._meters = self._meters or (AccuracyMeter(), AccuracyMeter())
        if not (np.isfinite(want_HW).all() and np.isfinite(got_HW).all()):
            self._broken = True
            return None
        for meter, mask_HW in zip(self._meters, (want_HW, got_HW), strict=True):
            meter.add(mask_HW, picture.truth_HW, picture.ignored_HW)
        want, got = (absolute_error(mask, picture.truth_HW, picture.ignored_HW) for mask in (want_HW, got_HW))
        return got - want

    def change(self, of: Callable[[Scores], float]) -> float | None:
        """Candidate minus reference."""
        if self._meters is None:
            return None
        if self._broken:
            return float("nan")
        want, got = (of(meter.scores()) for meter in self._meters)
        return got - want


def worst_of(rows: Sequence[Difference]) -> tuple[dict[str, float], dict[str, str]]:
    """Return each measure on its worst picture, with its name; NaN is the worst."""
    values: dict[str, float] = {}
    worst: dict[str, str] = {}
    for name in MEASURES:
        column = np.array([getattr(row, name) for row in rows])
        at = int(column.argmin() if name == "boundary_iou" else column.argmax())  # both stop at the first NaN
        values[name], worst[name] = float(column[at]), rows[at].name
    return values, worst


def _report(rows: Sequence[Difference], scores: _ScorePair, tolerance: Tolerance) -> ParityReport:
    values, worst = worst_of(rows)
    return ParityReport(
        tolerance=tolerance,
        pictures=len(rows),
        informative=sum(row.informative for row in rows),
        worst=worst,
        mae_change=scores.change(lambda s: s.mae),
        max_f_change=scores.change(lambda s: s.max_f),
        differences=tuple(rows),
        **values,  # type: ignore[arg-type]  # the five measures alone
    )
