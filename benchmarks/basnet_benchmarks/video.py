"""Frames per second of `basnet-run` on a video, from file to file, and where the processor's time went.

report = measure_video(VideoConfig(source=Path("clip.mp4"), model=Path("basnet.onnx")))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.measurement import Estimate, median_estimate
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.media.compose import OutputKind
from basnet_runtime.run import RunConfig, Summary, run
from basnet_torch.errors import MediaError, UsageError

__all__ = ["VideoConfig", "VideoReport", "VideoRun", "measure_video"]

_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoConfig:
    """What to run and how often.

    Attributes:
        source: A video file, or anything else that `basnet-run` takes as one input.
        model: Model file; None runs the built-in model.
        kind: What is made of each mask, as `basnet-run --kind` says it.
        runs: How often; the first is not left out, because a user's first run is one too.
        batch: Frames per network run.
        backend: Library to run with; None chooses.
        precision: What to compute in; None takes the model's own.
        threads: Processor threads for the network; None takes what the container allows.
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
    """

    source: Path
    model: Path | None = None
    kind: str = "mask"
    runs: int = 3
    batch: int = 1
    backend: BackendName | None = None
    precision: Precision | None = None
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise UsageError(f"runs is {self.runs}; it must be at least 1")


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

    def shares(self, stages: Sequence[str]) -> tuple[str, ...]:
        """Each stage's part of the processor time, for people."""
        total = sum(self.cpu_by_stage.values())
        return tuple(f"{self.cpu_by_stage[stage] / total:.0%}" if total > 0 else "-" for stage in stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "frames": self.frames,
            "seconds": self.seconds,
            "frames_per_second": self.frames_per_second,
            "cpu_seconds_by_stage": dict(self.cpu_by_stage),
            "wall_seconds_by_stage": dict(self.wall_by_stage),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoReport:
    """All runs of one video."""

    source: str
    model: str
    runs_on: str
    environment: Environment
    runs: tuple[VideoRun, ...]

    @property
    def frames_per_second(self) -> Estimate:
        """Median over the runs."""
        return median_estimate([run.frames_per_second for run in self.runs])

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order a frame goes through them."""
        return tuple(self.runs[0].cpu_by_stage)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "video",
            "source": self.source,
            "model": self.model,
            "runs_on": self.runs_on,
            "environment": self.environment.to_dict(),
            "frames_per_second": self.frames_per_second.to_dict(),
            "runs": [run.to_dict() for run in self.runs],
        }


def measure_video(config: VideoConfig, progress: _Progress = lambda _: None) -> VideoReport:
    """Run the video several times into a temporary folder, which is removed.

    Raises:
        MediaError: The video cannot be read.
        BasnetError: The model cannot be opened or run.
    """
    before = environment(config.threads)
    summaries = []
    for index in range(config.runs):
        progress(f"run {index + 1} of {config.runs}")
        with TemporaryDirectory(prefix="basnet-bench-") as folder:
            summaries.append(_run(config, folder))
    return VideoReport(
        source=config.source.name,
        model=summaries[0].model,
        runs_on=summaries[0].runs_on,
        environment=before,
        runs=tuple(map(_measured, summaries)),
    )


class _Unwatched:
    """Progress shown while frames are timed would be timed too."""

    def started(self, what: str, total: int) -> None:
        """Nothing to show."""

    def advanced(self) -> None:
        """Nothing to show."""


def _run(config: VideoConfig, folder: str) -> Summary:
    summary = run(
        RunConfig(
            inputs=(str(config.source),),
            output=folder,
            kind=OutputKind.parse(config.kind),
            model=config.model,
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


def _measured(summary: Summary) -> VideoRun:
    cpu = {stage: cpu for stage, (_, cpu) in summary.seconds_by_stage.items()}
    wall = {stage: wall for stage, (wall, _) in summary.seconds_by_stage.items()}
    return VideoRun(frames=summary.frames, seconds=summary.seconds, cpu_by_stage=cpu, wall_by_stage=wall)
