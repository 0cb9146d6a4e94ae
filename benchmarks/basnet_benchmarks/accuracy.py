"""How good a model's masks are on pictures whose truth is known, each mask at its picture's own size.

report = measure_accuracy(AccuracyConfig(model=Path("basnet.onnx"), datasets=(Path("DUTS-TE"),)))

A pair that cannot be scored is named and the others are scored, so that one file of thousands costs no night.

A checkpoint, an exported file and an engine are scored alike: what is scored is the mask that a run gives by default,
whether salient or not.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.fingerprint import fingerprint_of
from basnet_benchmarks.parity import Pictures
from basnet_benchmarks.report import Panel, thumbnails
from basnet_benchmarks.saliency_scores import SaliencyCurves, SaliencyMeter, SaliencyScores
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.media.edges import refined_edges
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import builtin_model, open_model
from basnet_runtime.parity import Picture
from basnet_runtime.threads import allowed_threads
from basnet_torch.config import MaskValues
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BasnetError, DataError, MediaError, ModelFileError, UsageError
from basnet_torch.unexpected import unexpected

__all__ = ["AccuracyConfig", "AccuracyReport", "AccuracyRow", "PictureScore", "measure_accuracy"]

Float32 = NDArray[np.float32]
_NAMED = 5  # best and worst pictures that a report names
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyConfig:
    """What to score on what.

    Attributes:
        model: Model file; None takes the built-in model.
        datasets: Data sets with masks, as folders or zip files.
        backend: Library to run with; None chooses.
        precision: What to compute in; None takes the model's own.
        threads: Processor threads; None takes what the container allows.
        device: `cpu`, `openvino`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
        panels: Whether thumbnails of the best and worst pictures are kept for a page.
        mask_values: What the values of the data sets' masks mean.
        refine_edges: Whether each mask's edges are refined first, as `basnet-run --refine-edges` does.
    """

    model: Path | None
    datasets: tuple[Path, ...]
    backend: BackendName | None = None
    precision: Precision | None = None
    threads: int | None = None
    device: Device = CPU
    panels: bool = False
    refine_edges: bool = False

    mask_values: MaskValues = "auto"

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
    """One data set.

    Attributes:
        dataset: Its name.
        scores: Over all its pictures.
        curves: By threshold, over all its pictures.
        empty: Pictures whose truth holds no object: each has recall and F of 0 whatever the mask is.
        best: Pictures of the smallest error, the best first.
        worst: Pictures of the largest error, the worst first.
        panels: These pictures, when they were asked for.
        found: What was odd in the data, by kind, as training counts it.
        failures: Pairs that could not be scored, and why.
    """

    dataset: str
    scores: SaliencyScores
    curves: SaliencyCurves
    empty: int
    best: tuple[PictureScore, ...]
    worst: tuple[PictureScore, ...]
    panels: tuple[Panel, ...] = ()
    found: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {
            kind: [{"name": p.name, "mae": p.mae, "iou": p.iou} for p in pictures]
            for kind, pictures in (("best", self.best), ("worst", self.worst))
        }
        curves = self.curves.to_dict()
        failures = [{"name": name, "error": error} for name, error in self.failures]
        return {
            "dataset": self.dataset,
            **self.scores.to_dict(),
            "empty": self.empty,
            "found": dict(self.found),
            "failures": failures,
            **named,
            "curves": curves,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyReport:
    """A whole run."""

    model: str
    fingerprint: str
    runs_on: str
    finishing: str
    refine_edges: bool
    environment: Environment
    rows: tuple[AccuracyRow, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Best and worst pictures of every data set."""
        return tuple(panel for row in self.rows for panel in row.panels)

    @property
    def conclusion(self) -> str:
        """Which pairs were not scored, in one line; empty when all were."""
        failed = [error for row in self.rows for _, error in row.failures]
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        return f"{len(failed)} pairs were not scored: {'; '.join(failed[:_NAMED])}{more}" if failed else ""

    @property
    def exit_code(self) -> int:
        """1 when pairs were not scored."""
        return 1 if self.conclusion else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "accuracy",
            "model": self.model,
            "fingerprint": self.fingerprint,
            "runs_on": self.runs_on,
            "finishing": self.finishing,
            "refine_edges": self.refine_edges,
            "environment": self.environment.to_dict(),
            "datasets": [row.to_dict() for row in self.rows],
        }


def measure_accuracy(config: AccuracyConfig, progress: _Progress = lambda _: None) -> AccuracyReport:
    """Run the model on every picture of every data set and score its masks.

    Raises:
        BackendUnavailable: The library or device, or PySODMetrics, is not there.
        UsageError: A data set has no masks.
        DataError: A data set's layout is not known, its masks are label maps, or none of its pairs can be scored.
        ModelFileError: The model cannot be read, or gives values that are not finite.
    """
    threads = config.threads or allowed_threads()
    sources = [_with_truth(path, config.mask_values) for path in config.datasets]
    sets = list(zip(_names(config.datasets), sources, strict=True))
    path = config.model or builtin_model(config.backend, config.device, config.precision)
    with open_model(
        path, backend=config.backend, precision=config.precision, threads=threads, device=config.device
    ) as model:
        rows = tuple(_row(name, pictures, model, config, progress) for name, pictures in sets)
        return AccuracyReport(
            model=model.name,
            fingerprint=fingerprint_of(path),
            runs_on=model.backend.description,
            finishing="stretched to its own range" if model.postprocess.stretch else "as it is",
            refine_edges=config.refine_edges,
            environment=environment(threads),
            rows=rows,
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """Each data set's own folder name, or what was typed where two have one name."""
    short = [path.resolve().name for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


def _with_truth(path: Path, values: MaskValues) -> Pictures:
    pictures = Pictures(path, mask_values=values, on_bad="skip")
    if not pictures.has_truth:
        raise UsageError(f"{path}: holds pictures and no masks, so nothing can be scored; give a data set")
    return pictures


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
            mask_HW = _mask(model, picture, config)
        except MediaError as error:
            failures.append((picture.name, str(error)))
            continue
        except BasnetError:
            raise
        except Exception as error:  # noqa: BLE001 - a defect that this picture brings to light
            failures.append((picture.name, unexpected(picture.name, error)))
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
    if extremes.is_empty:
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
        failures=tuple(failures),
    )


def _mask(model: SaliencyModel, picture: Picture, config: AccuracyConfig) -> Float32:
    model.check_size(picture.name, *picture.image_HWC.shape[:2])
    mask_HW = model.mask(picture.image_HWC)
    if not config.refine_edges:
        return mask_HW
    refined_HW = refined_edges(picture.image_HWC, np.rint(mask_HW * 255).astype(np.uint8))
    return refined_HW.astype(np.float32) / np.float32(255)


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
    def is_empty(self) -> bool:
        """Whether no picture was counted."""
        return not self._ordered

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
        kinds = (("best", self.best), ("worst", self.worst))
        return tuple(
            replace(self._shown[own.name], group=f"{self._dataset}, {kind}")
            for kind, scores in kinds
            for own in scores
            if own.name in self._shown
        )
