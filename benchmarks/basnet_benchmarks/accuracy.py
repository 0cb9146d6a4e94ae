"""Accuracy of a model's masks at picture size: F, S and E measures, boundaries.

    report = measure_accuracy(AccuracyConfig(model=Path("basnet.onnx"), datasets=(Path("DUTS-TE"),)))

A pair that cannot be scored is named and the others are scored, so that one file of thousands costs no night. A
checkpoint, an exported file and an engine are scored alike, by the mask that a run gives, salient or not. Masks
are scored as they are: nothing is stretched to a map's own range first, as some evaluation code does. F curves, S-, E-
and weighted F-measure come from PySODMetrics; what has thresholds is taken of masks in 256 levels, as they are saved.

Where a truth leaves pixels out, what is counted pixel by pixel (MAE, F, E, IoU) is counted without them; what looks at
shapes (S, weighted F, boundaries) sees background there in mask and truth alike.

Legend: H height, W width of the picture; masks are float32 in 0..1, truth is foreground above 0.5.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.candidates import BACKEND, MASKS, MODEL, PRECISION, RUN_DEVICE, THREADS, fingerprint_of
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_benchmarks.report import PANELS, Panel, thumbnails
from basnet_runtime.kinds import BackendName, Precision
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.media.compose.edges import refined_edges
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import builtin_model, open_model
from basnet_runtime.parity import Picture
from basnet_torch.arrays import Bool, Float32, Float64
from basnet_torch.data.options import MaskValues
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, BasnetError, DataError, MediaError, ModelFileError, UsageError
from basnet_torch.metrics import BETA_SQUARED, AccuracyMeter, absolute_error, boundary_iou, counted
from basnet_torch.options import argument, option
from basnet_torch.unexpected import unexpected

__all__ = [
    "AccuracyConfig",
    "AccuracyReport",
    "SaliencyMeter",
    "SaliencyScores",
    "measure_accuracy",
    "relaxed_boundary_f",
]

_NAMED = 5  # best and worst pictures that a report names
_SLACK = 3  # pixels; BASNet, section 4.2
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyConfig:
    """What to score on what; model None takes the built-in one."""

    model: Path | None = field(metadata=MODEL)
    datasets: tuple[Path, ...] = field(metadata=argument("DATASET...", "Folders or zips with masks."))
    backend: BackendName | None = field(default=None, metadata=BACKEND)
    precision: Precision | None = field(default=None, metadata=PRECISION)
    threads: int | None = field(default=None, metadata=THREADS)
    device: Device = field(default=CPU, metadata=RUN_DEVICE)
    mask_values: MaskValues = field(default="auto", metadata=MASKS)
    refine_edges: bool = field(
        default=False, metadata=option("Score masks with refined edges, as basnet-run has them.", "--refine-edges")
    )
    panels: bool = field(default=False, metadata=PANELS)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UsageError("datasets: name at least one folder with pictures and masks")


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureScore:
    """One picture: its name, mean absolute error, and IoU at 0.5."""

    name: str
    mae: float
    iou: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyRow:
    """One data set."""

    dataset: str  # its name
    scores: SaliencyScores  # over all its pictures
    curves: SaliencyCurves  # by threshold, over all its pictures
    empty: int  # pictures whose truth holds no object: each has recall and F of 0 whatever the mask is
    best: tuple[PictureScore, ...]  # pictures of the smallest error, the best first
    worst: tuple[PictureScore, ...]  # pictures of the largest error, the worst first
    panels: tuple[Panel, ...] = ()  # these pictures, when they were asked for
    found: Mapping[str, int] = field(default_factory=dict)  # what was odd in the data, by kind, as training counts it
    failures: tuple[Mapping[str, str], ...] = ()  # name and error of the pairs that could not be scored

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the scores among them."""
        names = ("empty", "found", "failures", "best", "worst", "curves")
        named = {name: getattr(self, name) for name in names}
        return {"dataset": self.dataset, **asdict(self.scores), **named}


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyReport:
    """A whole run; `postprocessing` says how masks were made of maps."""

    JSON: ClassVar = (
        *("command", "model", "fingerprint", "runs_on", "postprocessing", "refine_edges"),
        *("environment", "datasets"),
    )
    command: ClassVar = "accuracy"
    model: str
    fingerprint: str
    runs_on: str
    postprocessing: str
    refine_edges: bool
    environment: Environment
    datasets: tuple[AccuracyRow, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Best and worst pictures of every data set."""
        return tuple(panel for row in self.datasets for panel in row.panels)

    @property
    def complaint(self) -> str:
        """Which pairs were not scored, in one line; empty when all were."""
        failed = [failure["error"] for row in self.datasets for failure in row.failures]
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        return f"{len(failed)} pairs were not scored: {'; '.join(failed[:_NAMED])}{more}" if failed else ""

    @property
    def exit_code(self) -> int:
        """1 when pairs were not scored."""
        return 1 if self.complaint else 0


def measure_accuracy(config: AccuracyConfig, progress: _Progress = lambda _: None) -> AccuracyReport:
    """Run the model on every picture of every data set and score its masks.

    Raises:
        BackendUnavailable: The library or device, or PySODMetrics, is not there.
        UsageError: A data set has no masks.
        DataError: A data set's layout is not known, its masks are label maps, or none of its pairs can be scored.
        ModelFileError: The model cannot be read, or gives values that are not finite.
    """
    threads = config.threads or allowed_threads()
    sets = []
    short = [path.resolve().name for path in config.datasets]
    for path, name in zip(config.datasets, short, strict=True):
        pictures = Pictures(path, mask_values=config.mask_values, on_bad="skip")
        if not pictures.has_truth:
            raise UsageError(f"{path}: holds pictures and no masks, so nothing can be scored; give a data set")
        sets.append((name if short.count(name) == 1 else str(path), pictures))
    path = config.model or builtin_model(config.backend, config.device, config.precision)
    with open_model(
        path, backend=config.backend, precision=config.precision, threads=threads, device=config.device
    ) as model:
        rows = tuple(_row(name, pictures, model, config, progress) for name, pictures in sets)
        return AccuracyReport(
            model=model.name,
            fingerprint=fingerprint_of(path),
            runs_on=model.backend.description,
            postprocessing="stretched to its own range" if model.postprocess.stretch else "as it is",
            refine_edges=config.refine_edges,
            environment=environment(threads),
            datasets=rows,
        )


def _row(
    name: str, pictures: Pictures, model: SaliencyModel, config: AccuracyConfig, progress: _Progress
) -> AccuracyRow:
    meter, extremes, empty = SaliencyMeter(), _Extremes(name, config.panels), 0
    failures: list[tuple[str, str]] = []
    for index, picture in enumerate(pictures):
        if index % 50 == 0:
            progress(f"{name}: {index} pictures scored")
        assert picture.truth_HW is not None  # noqa: S101 - a data set's pictures all have one
        try:
            model.check_size(picture.name, *picture.image_HWC.shape[:2])
            mask_HW = model.mask(picture.image_HWC)
            if config.refine_edges:
                refined_HW = refined_edges(picture.image_HWC, np.rint(mask_HW * 255).astype(np.uint8))
                mask_HW = refined_HW.astype(np.float32) / np.float32(255)
        except Exception as error:
            if isinstance(error, BasnetError) and not isinstance(error, MediaError):
                raise
            said = str(error) if isinstance(error, MediaError) else unexpected(picture.name, error)  # or a defect
            failures.append((picture.name, said))
            continue
        try:
            own = meter.add(mask_HW, picture.truth_HW, picture.ignored_HW)
        except ValueError as error:
            raise ModelFileError(f"{model.name}: on {picture.name}: {error}") from error
        empty += not (picture.truth_HW > 0.5).any()
        extremes.add(PictureScore(name=picture.name, **own), picture, mask_HW)
    failures = [*pictures.failures, *failures]
    for line in pictures.report.lines():
        progress(f"{name}: {line}")
    if not extremes.best:
        why = f" ({failures[0][1]})" if failures else ""
        raise DataError(f"{name}: none of {len(failures)} pairs can be scored{why}")
    return AccuracyRow(
        dataset=name,
        scores=meter.scores(),
        curves=meter.curves(),
        empty=empty,
        best=extremes.best,
        worst=extremes.worst,
        panels=extremes.panels,
        found=pictures.report.counts(),
        failures=tuple({"name": failed, "error": error} for failed, error in failures),
    )


class _Extremes:
    """The pictures of the smallest and of the largest error; thumbnails only of those that are among them."""

    def __init__(self, dataset: str, panels: bool) -> None:  # noqa: FBT001
        self._dataset = dataset
        self._wanted = panels
        self._ordered: list[PictureScore] = []
        self._shown: dict[str, Panel] = {}

    def add(self, score: PictureScore, picture: Picture, mask_HW: Float32) -> None:
        """Count one picture; of equal errors the first one stays."""
        bisect.insort(self._ordered, score, key=lambda own: own.mae)
        named = {own.name for own in (*self.best, *self.worst)}
        if self._wanted and score.name in named:
            assert picture.truth_HW is not None  # noqa: S101 - a data set's pictures all have one
            images: dict[str, NDArray[Any]] = {"photo": picture.image_HWC, "truth": picture.truth_HW, "mask": mask_HW}
            caption = f"MAE {score.mae:.3f}, IoU at 0.5 {score.iou:.3f}"
            self._shown[score.name] = Panel(group="", name=score.name, caption=caption, images=thumbnails(images))
        self._shown = {name: panel for name, panel in self._shown.items() if name in named}

    @property
    def best(self) -> tuple[PictureScore, ...]:
        """Smallest error first."""
        return tuple(self._ordered[:_NAMED])

    @property
    def worst(self) -> tuple[PictureScore, ...]:
        """Largest error first."""
        return tuple(self._ordered[::-1][:_NAMED])

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Best, then worst, when they were asked for."""
        ends = (*((own, "best") for own in self.best), *((own, "worst") for own in self.worst))
        shown = ((self._shown[own.name], kind) for own, kind in ends if own.name in self._shown)
        return tuple(replace(panel, group=f"{self._dataset}, {kind}") for panel, kind in shown)


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyScores:
    """Of a set of pictures; of `mae` less is better, of the others more."""

    pictures: int  # how many
    max_f: float  # largest F of the mean precision and mean recall per threshold, beta^2 = 0.3: the paper's maxF
    max_f_curve: float  # largest value of the mean of the pictures' own F curves, which PySODMetrics calls maximal F
    mean_f: float  # mean of that curve
    weighted_f: float  # weighted F-measure (Margolin et al. 2014), beta^2 = 1
    s_measure: float  # structure measure (Fan et al. 2017), alpha = 0.5
    e_max: float  # largest value of the mean E-measure curve (Fan et al. 2018)
    e_mean: float  # mean of that curve
    mae: float  # mean absolute error
    relaxed_boundary_f: float  # F of the boundaries at 0.5 with 3 pixels of slack, mean over pictures
    boundary_iou: float  # boundary IoU at 0.5 (Cheng et al. 2021), mean over pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class SaliencyCurves:
    """Means over pictures at the thresholds 0..255; arrays of 256 values."""

    precision: Float64  # mean precision
    recall: Float64  # mean recall
    f: Float64  # F of the two, whose largest value is `max_f`
    f_of_pictures: Float64  # mean of the pictures' own F, whose largest value is `max_f_curve`
    e: Float64  # mean E-measure

    def to_dict(self) -> dict[str, list[float]]:
        """Plain values for JSON, four decimals each."""
        return {own.name: getattr(self, own.name).round(4).tolist() for own in fields(self)}


class SaliencyMeter:
    """Collects pictures one by one; each mask and truth at the picture's own size.

    Raises:
        BackendUnavailable: PySODMetrics is not installed.
    """

    def __init__(self) -> None:
        try:
            import py_sod_metrics as sod
        except ImportError as error:
            raise BackendUnavailable("PySODMetrics is not installed; pip install 'basnet-deploy[accuracy]'") from error
        self._accuracy = AccuracyMeter()
        f_curve = sod.FmeasureHandler(beta=BETA_SQUARED, with_adaptive=False, with_dynamic=True)
        self._f = sod.FmeasureV2(metric_handlers={"f": f_curve})
        self._weighted, self._s, self._e = sod.WeightedFmeasure(), sod.Smeasure(), sod.Emeasure()
        self._boundary: list[float] = []
        self._relaxed: list[float] = []

    def add(self, mask_HW: Float32, truth_HW: Float32, ignored_HW: Bool | None = None) -> dict[str, float]:
        """Count one picture; returns its MAE and its IoU at 0.5.

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
        """By threshold, over all pictures so far; ValueError when there are none."""
        own = self._accuracy.curves()
        return SaliencyCurves(
            precision=own.precision,
            recall=own.recall,
            f=own.f,
            f_of_pictures=np.asarray(self._f.get_results()["f"]["dynamic"])[::-1],  # theirs fall from 255 to 0
            e=np.asarray(self._e.get_results()["em"]["curve"])[::-1],
        )

    def scores(self) -> SaliencyScores:
        """Of all pictures so far; ValueError when there are none."""
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
    """Return F, beta^2 = 0.3, of boundaries relaxed by 3 pixels (BASNet, 4.2).

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
