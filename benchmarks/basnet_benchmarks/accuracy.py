"""How good a model's masks are on pictures whose truth is known, each mask at its picture's own size.

report = measure_accuracy(AccuracyConfig(model=Path("basnet.onnx"), datasets=(Path("DUTS-TE"),)))

A checkpoint, an exported file and an engine are scored alike: what is scored is the finished mask that users get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_benchmarks.saliency_scores import SaliencyMeter, SaliencyScores
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import open_model
from basnet_runtime.threads import allowed_threads
from basnet_torch.errors import ModelFileError, UsageError

__all__ = ["AccuracyConfig", "AccuracyReport", "AccuracyRow", "PictureScore", "measure_accuracy"]

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
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
    """

    model: Path | None
    datasets: tuple[Path, ...]
    backend: BackendName | None = None
    precision: Precision | None = None
    threads: int | None = None
    device: str = "cpu"

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
        best: Pictures of the smallest error, the best first.
        worst: Pictures of the largest error, the worst first.
    """

    dataset: str
    scores: SaliencyScores
    best: tuple[PictureScore, ...]
    worst: tuple[PictureScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {
            kind: [{"name": p.name, "mae": p.mae, "iou": p.iou} for p in pictures]
            for kind, pictures in (("best", self.best), ("worst", self.worst))
        }
        return {"dataset": self.dataset, **self.scores.to_dict(), **named}


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyReport:
    """A whole run."""

    model: str
    runs_on: str
    finishing: str
    environment: Environment
    rows: tuple[AccuracyRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "accuracy",
            "model": self.model,
            "runs_on": self.runs_on,
            "finishing": self.finishing,
            "environment": self.environment.to_dict(),
            "datasets": [row.to_dict() for row in self.rows],
        }


def measure_accuracy(config: AccuracyConfig, progress: _Progress = lambda _: None) -> AccuracyReport:
    """Run the model on every picture of every data set and score its masks.

    Raises:
        BackendUnavailable: The library or device, or PySODMetrics, is not there.
        UsageError: A data set has no masks.
        DataError: A data set's layout is not known, or a picture cannot be read.
        ModelFileError: The model cannot be read, or gives values that are not finite.
    """
    threads = config.threads or allowed_threads()
    sets = [(path, _with_truth(path)) for path in config.datasets]
    with open_model(
        config.model, backend=config.backend, precision=config.precision, threads=threads, device=config.device
    ) as model:
        rows = tuple(_row(path.resolve().name, pictures, model, progress) for path, pictures in sets)
        return AccuracyReport(
            model=model.name,
            runs_on=model.backend.description,
            finishing="stretched to its own range" if model.postprocess.stretch else "as it is",
            environment=environment(threads),
            rows=rows,
        )


def _with_truth(path: Path) -> Pictures:
    pictures = Pictures(path)
    if next(iter(pictures)).truth_HW is None:
        raise UsageError(f"{path}: holds pictures and no masks, so nothing can be scored; give a data set")
    return pictures


def _row(name: str, pictures: Pictures, model: SaliencyModel, progress: _Progress) -> AccuracyRow:
    meter, single = SaliencyMeter(), []
    for index, picture in enumerate(pictures):
        if index % 50 == 0:
            progress(f"{name}: {index} pictures scored")
        assert picture.truth_HW is not None  # noqa: S101 - a data set's pictures all have one
        model.check_size(picture.name, *picture.image_HWC.shape[:2])
        mask_HW = model(picture.image_HWC)
        try:
            own = meter.add(mask_HW, picture.truth_HW)
        except ValueError as error:
            raise ModelFileError(f"{model.name}: on {picture.name}: {error}") from error
        single.append(PictureScore(name=picture.name, **own))
    ordered: Sequence[PictureScore] = sorted(single, key=lambda score: score.mae)
    return AccuracyRow(
        dataset=name, scores=meter.scores(), best=tuple(ordered[:_NAMED]), worst=tuple(ordered[::-1][:_NAMED])
    )
