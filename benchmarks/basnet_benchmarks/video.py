"""Frames per second of `basnet-run` on a video file, and CPU time by stage.

report = measure_video(VideoConfig(source=Path("clip.mp4"), models=(Path("basnet.onnx"), Path("basnet-int8.onnx"))))

Several engines run in interleaved rounds, each once per round, so that a machine that drifts slows all of them; their
ratios are taken round by round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import ClassVar

from basnet_benchmarks.candidates import BACKEND, PRECISION, RUN_DEVICE, THREADS
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.statistics import Estimate, median_estimate, round_order
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run import Summary, run
from basnet_runtime.kinds import BackendName, OutputKind, Precision
from basnet_torch.device import CPU, Device
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import scratch_folder
from basnet_torch.options import argument, check, option

__all__ = ["VideoConfig", "VideoReport", "VideoResult", "VideoRun", "measure_video"]

_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoConfig:
    """Video benchmark configuration; the first run counts, as a user's does."""

    source: Path = field(metadata=argument("INPUT", "Video file."))
    models: tuple[Path, ...] = field(
        default=(),
        metadata=option("Repeatable; ratios are to the first. Default: the built-in model.", "--engine", "--model"),
    )
    kind: str = field(default="mask", metadata=option("mask, cutout, overlay, color:#rrggbb, image:FILE or blur."))
    runs: int = field(default=3, metadata=option("Runs of each engine; several engines take turns.", min=1))
    batch: int = field(default=1, metadata=option("Frames per network run.", min=1))
    backend: BackendName | None = field(default=None, metadata=BACKEND)
    precision: Precision | None = field(default=None, metadata=PRECISION)
    threads: int | None = field(default=None, metadata=THREADS)
    device: Device = field(default=CPU, metadata=RUN_DEVICE)

    def __post_init__(self) -> None:
        check(self)
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise UsageError(f"engines {', '.join(names)}: give each once, under its own file name")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRun:
    """One run."""

    JSON: ClassVar = (
        *("frames", "seconds", "frames_per_second", "of_ceiling"),
        *("cpu_seconds_by_stage", "wall_seconds_by_stage"),
    )
    frames: int  # written
    seconds: float  # on the clock, opening the model apart
    cpu_seconds_by_stage: Mapping[str, float]  # CPU time, all threads together
    # on the clock in the one thread that runs the stage; stages overlap
    wall_seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    processors: int = 1  # logical CPUs there were

    @property
    def frames_per_second(self) -> float:
        """Frames by seconds on the clock."""
        return self.frames / self.seconds

    @property
    def of_ceiling(self) -> float:
        """Frames per second as a share of what the stages' CPU time alone allows."""
        return sum(self.cpu_seconds_by_stage.values()) / (self.processors * self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """Runs of one model, and of the first one; equal places are of one round."""

    JSON: ClassVar = ("model", "runs_on", "frames_per_second", "ratio_to_first", "of_ceiling", "runs")
    model: str
    runs_on: str
    runs: tuple[VideoRun, ...]
    first: tuple[VideoRun, ...]

    @property
    def frames_per_second(self) -> Estimate:
        """Median over the runs."""
        return median_estimate([run.frames_per_second for run in self.runs])

    @property
    def ratio_to_first(self) -> Estimate:
        """Return the speed ratio to the first model: the median over rounds."""
        pairs = zip(self.runs, self.first, strict=True)
        return median_estimate([own.frames_per_second / other.frames_per_second for own, other in pairs])

    @property
    def of_ceiling(self) -> float:
        """Median over the runs."""
        return median(run.of_ceiling for run in self.runs)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoReport:
    """All runs of one video; ratios are to the first result."""

    JSON: ClassVar = ("command", "source", "environment", "results")
    command: ClassVar = "video"
    source: str
    environment: Environment
    results: tuple[VideoResult, ...]


def measure_video(config: VideoConfig, progress: _Progress = lambda _: None) -> VideoReport:
    """Run the video with each model in every round, into a temporary folder.

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
            with scratch_folder() as folder:
                summaries[name].append(_run(config, models[name], folder))
    first, *_ = runs = {name: [_measured(one, before.processors) for one in own] for name, own in summaries.items()}
    results = (
        VideoResult(model=own[0].model, runs_on=own[0].runs_on, runs=tuple(runs[name]), first=tuple(runs[first]))
        for name, own in summaries.items()
    )
    return VideoReport(source=config.source.name, environment=before, results=tuple(results))


class _Unwatched:
    """Shows no progress: while frames are timed that would be timed too."""

    def started(self, what: str, total: int) -> None:
        """See `basnet_runtime.command.jobs.ProgressListener`."""

    def advanced(self) -> None:
        """See `basnet_runtime.command.jobs.ProgressListener`."""


def _run(config: VideoConfig, model: Path | None, folder: Path) -> Summary:
    summary = run(
        RunConfig(
            inputs=(str(config.source),),
            output=str(folder),
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


def _measured(summary: Summary, processors: int) -> VideoRun:
    return VideoRun(
        frames=summary.frames,
        seconds=summary.seconds,
        cpu_seconds_by_stage={stage: cpu for stage, (_, cpu) in summary.seconds_by_stage.items()},
        wall_seconds_by_stage={stage: wall for stage, (wall, _) in summary.seconds_by_stage.items()},
        processors=processors,
    )
