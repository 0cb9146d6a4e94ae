"""Frames per second of `basnet-run` on a video, from file to file, and where the processor's time went.

report = measure_video(VideoConfig(source=Path("clip.mp4"), models=(Path("basnet.onnx"), Path("basnet-int8.onnx"))))

Several engines run in interleaved rounds, each once per round, so that a machine that drifts slows all of them; their
ratios are taken round by round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.measurement import Estimate, median_estimate
from basnet_benchmarks.rounds import round_order
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.media.compose import OutputKind
from basnet_runtime.run import RunConfig, Summary, run
from basnet_torch.device import CPU, Device
from basnet_torch.errors import MediaError, UsageError

__all__ = ["VideoConfig", "VideoReport", "VideoResult", "VideoRun", "measure_video"]

_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoConfig:
    """What to run and how often.

    Attributes:
        source: A video file, or anything else that `basnet-run` takes as one input.
        models: Model files, each of another name; empty runs the built-in model.
        kind: What is made of each mask, as `basnet-run --kind` says it.
        runs: Of each model; the first is not left out, because a user's first run is one too.
        batch: Frames per network run.
        backend: Library to run with; None chooses.
        precision: What to compute in; None takes the model's own.
        threads: Processor threads for the network; None takes what the container allows.
        device: `cpu`, `openvino`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
    """

    source: Path
    models: Sequence[Path] = ()
    kind: str = "mask"
    runs: int = 3
    batch: int = 1
    backend: BackendName | None = None
    precision: Precision | None = None
    threads: int | None = None
    device: Device = CPU

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise UsageError(f"runs is {self.runs}; it must be at least 1")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise UsageError(f"engines {', '.join(names)}: give each once, under its own file name")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRun:
    """One run.

    Attributes:
        frames: Written.
        seconds: On the clock, opening the model apart.
        cpu_by_stage: Processor seconds, all threads together.
        wall_by_stage: Seconds on the clock in the one thread that runs the stage; stages overlap.
    """

    frames: int
    seconds: float
    cpu_by_stage: Mapping[str, float]
    wall_by_stage: Mapping[str, float] = field(default_factory=dict)

    @property
    def frames_per_second(self) -> float:
        """Frames by seconds on the clock."""
        return self.frames / self.seconds

    def of_ceiling(self, processors: int) -> float:
        """Frames per second as a share of what the stages' processor time alone allows on so many processors."""
        return sum(self.cpu_by_stage.values()) / (processors * self.seconds)

    def to_dict(self, processors: int) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "frames": self.frames,
            "seconds": self.seconds,
            "frames_per_second": self.frames_per_second,
            "of_ceiling": self.of_ceiling(processors),
            "cpu_seconds_by_stage": dict(self.cpu_by_stage),
            "wall_seconds_by_stage": dict(self.wall_by_stage),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """All runs of one model; runs of one place in `runs` are of one round."""

    model: str
    runs_on: str
    runs: tuple[VideoRun, ...]

    @property
    def frames_per_second(self) -> Estimate:
        """Median over the runs."""
        return median_estimate([run.frames_per_second for run in self.runs])

    def ratio_to(self, reference: VideoResult) -> Estimate:
        """Frames per second as a ratio to another model's: the median of the ratios of each round."""
        pairs = zip(self.runs, reference.runs, strict=True)
        return median_estimate([own.frames_per_second / other.frames_per_second for own, other in pairs])


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoReport:
    """All runs of one video; ratios are to the first result."""

    source: str
    environment: Environment
    results: tuple[VideoResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "video",
            "source": self.source,
            "environment": self.environment.to_dict(),
            "results": [self._result_to_dict(result) for result in self.results],
        }

    def _result_to_dict(self, result: VideoResult) -> dict[str, Any]:
        processors = self.environment.processors
        return {
            "model": result.model,
            "runs_on": result.runs_on,
            "frames_per_second": result.frames_per_second.to_dict(),
            "ratio_to_first": result.ratio_to(self.results[0]).to_dict(),
            "of_ceiling": median(run.of_ceiling(processors) for run in result.runs),
            "runs": [run.to_dict(processors) for run in result.runs],
        }


def measure_video(config: VideoConfig, progress: _Progress = lambda _: None) -> VideoReport:
    """Run the video with each model in every round into a temporary folder, which is removed.

    Raises:
        MediaError: The video cannot be read.
        BasnetError: The model cannot be opened or run.
    """
    before = environment(config.threads)
    models: dict[str, Path | None] = {model.name: model for model in config.models} or {"the built-in model": None}
    summaries: dict[str, list[Summary]] = {name: [] for name in models}
    for index in range(config.runs):
        for name in round_order(list(models), index):
            progress(f"run {index + 1} of {config.runs}: {name}")
            with TemporaryDirectory(prefix="basnet-bench-") as folder:
                summaries[name].append(_run(config, models[name], folder))
    return VideoReport(source=config.source.name, environment=before, results=tuple(map(_result, summaries.values())))


class _Unwatched:
    """Progress shown while frames are timed would be timed too."""

    def started(self, what: str, total: int) -> None:
        """Nothing to show."""

    def advanced(self) -> None:
        """Nothing to show."""


def _run(config: VideoConfig, model: Path | None, folder: str) -> Summary:
    summary = run(
        RunConfig(
            inputs=(str(config.source),),
            output=folder,
            kind=OutputKind.parse(config.kind),
            model=model,
            backend=config.backend,
            device=config.device,
            threads=config.threads,
            precision=config.precision,
            batch=config.batch,
        ),
        _Unwatched(),
    )
    if summary.failures:
        raise MediaError(summary.failures[0].error)
    if not summary.frames:
        raise MediaError(f"{config.source}: holds no frames, so there is nothing to time")
    return summary


def _result(summaries: Sequence[Summary]) -> VideoResult:
    first = summaries[0]
    return VideoResult(model=first.model, runs_on=first.runs_on, runs=tuple(map(_measured, summaries)))


def _measured(summary: Summary) -> VideoRun:
    cpu = {stage: cpu for stage, (_, cpu) in summary.seconds_by_stage.items()}
    wall = {stage: wall for stage, (wall, _) in summary.seconds_by_stage.items()}
    return VideoRun(frames=summary.frames, seconds=summary.seconds, cpu_by_stage=cpu, wall_by_stage=wall)
