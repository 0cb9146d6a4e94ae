"""A whole `basnet-run`: plan the outputs, open the model, run pictures and then each video, and sum up.

`run(RunConfig(inputs=("photo.jpg",)), watcher)` does everything the command does, without a terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.finish import Finishing
from basnet_runtime.media.compose import Composer, OutputKind
from basnet_runtime.media.frame import Composed
from basnet_runtime.media.jobs import Failure, Job, Plan, plan_jobs
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline import Pipeline, RunReport
from basnet_runtime.timing import STAGES
from basnet_runtime.verdict import VerdictLog
from basnet_torch.errors import BasnetError, UsageError

__all__ = ["Result", "RunConfig", "Summary", "Watcher", "run"]

_MOST_FEATHER = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What to run and how.

    Attributes:
        inputs: Files, folders, globs.
        output: A folder or, for one input, a file; None writes beside each input.
        kind: What is made of each mask.
        model: Model file; None runs the built-in model.
        backend: Library to run it with; None chooses.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Processor threads for the network; None uses what the container allows.
        precision: Required precision; None takes the model's own.
        batch: Pictures per network run.
        max_pixels: Pictures above this are refused.
        recursive: Take subfolders too.
        overwrite: Replace existing outputs.
        skip_existing: Leave out inputs whose output exists.
        keep_suffix: Name outputs by the input's whole name.
        threshold: Share, 0..1, from which a mask's value counts as foreground; None keeps soft masks.
        feather: Blur of the mask's edge, pixels.
        keep_weak: Keep masks where nothing salient was found, instead of empty ones.
    """

    inputs: Sequence[str]
    output: str | None = None
    kind: OutputKind = field(default_factory=OutputKind)
    model: Path | None = None
    backend: BackendName | None = None
    device: str = "cpu"
    threads: int | None = None
    precision: Precision | None = None
    batch: int = 1
    max_pixels: int = 300_000_000
    recursive: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    keep_suffix: bool = False
    threshold: float | None = None
    feather: float = 0.0
    keep_weak: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}; it must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; it must be at least 1")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; it must be above 0 and at most 1")
        if not 0 <= self.feather <= _MOST_FEATHER:
            raise UsageError(f"feather is {self.feather}; it must be 0 to {_MOST_FEATHER} pixels")
        if self.max_pixels < 1:
            raise UsageError(f"max-pixels is {self.max_pixels}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One finished output.

    Attributes:
        source: Input file.
        target: Output file.
        frames: Pictures or video frames in it.
        verdicts: Whether anything salient was found, by frame.
        notes: What a user should know, such as a truncated input.
    """

    source: Path
    target: Path
    frames: int
    verdicts: VerdictLog
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        paths = {"source": os.fspath(self.source), "target": os.fspath(self.target)}
        return {**paths, "frames": self.frames, **self.verdicts.to_dict(), "notes": list(self.notes)}


@dataclass(kw_only=True, slots=True)
class Summary:
    """Everything a run did.

    Attributes:
        model: Name of the model.
        runs_on: What really ran: library, device, precision.
        results: Finished outputs.
        failures: Inputs without a result.
        notes: About the run as a whole.
        frames: Frames in all.
        seconds: Time with frames on their way; opening the model is not part of it.
        seconds_by_stage: Stage to (wall, processor) seconds; `other` is what no stage accounts for.
    """

    model: str = ""
    runs_on: str = ""
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    seconds_by_stage: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def frames_per_second(self) -> float:
        """Frames by seconds."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def network_share(self) -> float:
        """The network's part of all processor time, 0..1."""
        total = sum(cpu for _, cpu in self.seconds_by_stage.values())
        return self.seconds_by_stage.get("network", (0.0, 0.0))[1] / total if total > 0 else 0.0

    def add(self, report: RunReport) -> None:
        """Count one pipeline run."""
        self.frames += report.frames
        self.seconds += report.seconds
        spent: dict[str, tuple[float, float]] = {
            stage: (report.clock.times[stage].wall, report.clock.times[stage].cpu) for stage in STAGES
        }
        for stage, (wall, cpu) in [*spent.items(), ("other", (0.0, report.clock.other()))]:
            before = self.seconds_by_stage.get(stage, (0.0, 0.0))
            self.seconds_by_stage[stage] = before[0] + wall, before[1] + cpu

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "runs_on": self.runs_on,
            "results": [result.to_dict() for result in self.results],
            "failures": [{"source": os.fspath(item.source), "error": item.error} for item in self.failures],
            "notes": self.notes,
            "frames": self.frames,
            "seconds": round(self.seconds, 4),
            "frames_per_second": round(self.frames_per_second, 3),
            "network_share": round(self.network_share, 4),
            "seconds_by_stage": {
                stage: {"wall": round(wall, 4), "cpu": round(cpu, 4)}
                for stage, (wall, cpu) in self.seconds_by_stage.items()
            },
        }


class Watcher(Protocol):
    """Is told how a run goes; called from the writer thread too."""

    def started(self, what: str, total: int) -> None:
        """A group of pictures or one video begins; `total` frames, 0 when unknown."""

    def advanced(self) -> None:
        """One more frame is written."""


def run(config: RunConfig, watcher: Watcher, summary: Summary | None = None) -> Summary:
    """Do it all.

    Args:
        config: What to run.
        watcher: Is told of every frame.
        summary: Filled as work goes on, so that an interrupted caller still has what was done.

    Raises:
        UsageError: The plan cannot be carried out; nothing has been done.
        BasnetError: The model cannot be opened or run.
    """
    summary = summary or Summary()
    plan = _plan(config)
    summary.failures += plan.failures
    summary.notes += plan.notes
    if not plan.jobs:
        return summary
    composer = Composer(config.kind, threshold=config.threshold, feather=config.feather)
    with _open_model(config) as model, _opencv_out_of_the_way(config.device):
        summary.model, summary.runs_on = model.name, model.backend.description
        pictures = [job for job in plan.jobs if job.media == "picture"]
        if pictures:
            _run_pictures(config, model, composer, pictures, watcher, summary)
        for job in plan.jobs:
            if job.media == "video":
                _run_video(config, model, composer, job, watcher, summary)
    return summary


def _plan(config: RunConfig) -> Plan:
    from basnet_runtime.media.pictures import check_picture_output
    from basnet_runtime.media.video_side import check_output, default_suffix

    plan = plan_jobs(
        config.inputs,
        kind=config.kind,
        output=config.output,
        recursive=config.recursive,
        overwrite=config.overwrite,
        skip_existing=config.skip_existing,
        keep_suffix=config.keep_suffix,
        video_suffix=default_suffix,
    )
    for job in plan.jobs:
        if job.media == "picture":
            check_picture_output(job.target, alpha=config.kind.has_alpha)
        else:
            check_output(job.source, job.target, config.kind)
    return plan


def _open_model(config: RunConfig) -> SaliencyModel:
    from basnet_runtime.open import open_model

    return open_model(
        config.model,
        backend=config.backend,
        device=config.device,
        threads=config.threads,
        precision=config.precision,
    )


@contextmanager
def _opencv_out_of_the_way(device: str) -> Iterator[None]:
    """One OpenCV thread while the network uses the processor: its own pool would fight for the same cores."""
    import cv2

    before = cv2.getNumThreads()
    if device == "cpu":
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)  # the caller's own work goes on as before


def _run_pictures(
    config: RunConfig, model: SaliencyModel, composer: Composer, jobs: list[Job], watcher: Watcher, summary: Summary
) -> None:
    from basnet_runtime.media.picture_files import PictureSink, PictureSource

    source = PictureSource(jobs, max_pixels=config.max_pixels, check_size=model.check_size)
    sink = PictureSink(jobs, overwrite=config.overwrite)
    watcher.started("pictures" if len(jobs) > 1 else jobs[0].source.name, len(jobs))
    pipeline = Pipeline(
        model, composer, batch=config.batch, on_frame=lambda _: watcher.advanced(), finishing=_finishing(config)
    )
    try:
        summary.add(pipeline.run(source, sink))
    finally:
        summary.failures += source.failures + sink.failures
        for index, verdict in sorted(sink.written.items()):
            verdicts = VerdictLog()
            verdicts.add(verdict)
            notes = source.notes.get(index, [])
            summary.results.append(_result(jobs[index], 1, verdicts, notes))


def _run_video(
    config: RunConfig, model: SaliencyModel, composer: Composer, job: Job, watcher: Watcher, summary: Summary
) -> None:
    from basnet_runtime.media.video import VideoSource
    from basnet_runtime.media.video_sink import VideoSink

    verdicts = VerdictLog()
    try:
        with VideoSource(job.source) as source:
            model.check_size(str(job.source), source.traits.height, source.traits.width)
            sink = VideoSink(job.target, source.traits, config.kind, overwrite=config.overwrite)
            traits = source.traits
            watcher.started(job.source.name, traits.frames or round(traits.seconds * traits.rate))

            def advanced(item: Composed) -> None:
                verdicts.add(item.verdict)
                watcher.advanced()

            pipeline = Pipeline(
                model, composer, batch=config.batch, on_frame=advanced, finishing=_finishing(config), stream=True
            )
            report = pipeline.run(source, sink)
    except BasnetError as error:
        if error.exit_code != 1:
            raise
        summary.failures.append(Failure(source=job.source, error=str(error)))
        return
    summary.add(report)
    summary.results.append(_result(job, report.frames, verdicts, source.warnings + sink.warnings))


def _finishing(config: RunConfig) -> Finishing:
    return Finishing(keep_weak=config.keep_weak)


def _result(job: Job, frames: int, verdicts: VerdictLog, notes: Sequence[str]) -> Result:
    told = (*notes, *(() if verdicts.salient else ("nothing salient was found",)))
    return Result(source=job.source, target=job.target, frames=frames, verdicts=verdicts, notes=told)
