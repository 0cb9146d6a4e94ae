"""Run `basnet-run`: plan, open the model, run pictures and video, sum up.

`run(RunConfig(inputs=("photo.jpg",)), listener)` does everything the command does, without a terminal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import (
    Failure,
    Job,
    Media,
    Plan,
    ProgressListener,
    failure_of,
    left_out_note,
    plan_jobs,
    without_finished,
)
from basnet_runtime.command.journal import Journal, noted, run_settings
from basnet_runtime.command.watch import LOOK_SECONDS, StableFiles, check_watched, one_by_one
from basnet_runtime.frame import ResultFrame
from basnet_runtime.machine.threads import without_threads
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.video.open import camera_of, is_address
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.run import Pipeline, RunReport
from basnet_runtime.pipeline.timing import STAGES
from basnet_runtime.salience import SalienceLog
from basnet_torch.device import Device
from basnet_torch.errors import BasnetError, MediaError, UsageError

if TYPE_CHECKING:
    from basnet_runtime.command.run_video import VideoRun

__all__ = [
    "Result",
    "Summary",
    "Work",
    "check_job",
    "checked",
    "composer_of",
    "follow",
    "opencv_out_of_the_way",
    "opened_model",
    "plan_run",
    "result_suffix",
    "run",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One finished output.

    Attributes:
        source: Input file; plain text in the summary of a cluster, which may be one of a million.
        target: Output file, as the source.
        frames: Pictures or video frames in it.
        decisions: Whether anything salient was found, by frame.
        notes: What a user should know, such as a truncated input.
        coding: Of video: which decoder and encoder ran, and on what.
        complete: Whether everything that was asked is in it: not of a damaged or interrupted video.
    """

    source: Path | str
    target: Path | str
    frames: int
    decisions: SalienceLog
    notes: tuple[str, ...] = ()
    coding: str = ""
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        paths = {"source": os.fspath(self.source), "target": os.fspath(self.target)}
        video = {"coding": self.coding, "complete": self.complete} if self.coding else {}
        return {**paths, "frames": self.frames, **self.decisions.to_dict(), "notes": list(self.notes), **video}


@dataclass(kw_only=True, slots=True)
class Summary:
    """Everything a run did.

    Attributes:
        model: Name of the model.
        runs_on: What really ran: library, device, precision.
        results: Finished outputs.
        failures: Inputs without a result.
        notes: About the run as a whole.
        left_out: Suffix to how many files of the folders are no pictures or video.
        frames: Frames in all.
        seconds: Time with frames on their way; opening the model is not part of it.
        seconds_by_stage: Stage to (wall, CPU) seconds; `other` is what no stage accounts for.
        workers: Of a cluster, what each worker did, as plain values.
    """

    model: str = ""
    runs_on: str = ""
    results: list[Result] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    seconds: float = 0.0
    seconds_by_stage: dict[str, tuple[float, float]] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        """Frames by seconds."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def network_share(self) -> float:
        """The network's part of all CPU time, 0..1."""
        total = sum(cpu for _, cpu in self.seconds_by_stage.values())
        return self.seconds_by_stage.get("network", (0.0, 0.0))[1] / total if total > 0 else 0.0

    def begin(self, plan: Plan) -> bool:
        """Take over what a plan says already; whether it leaves something to do."""
        self.failures += plan.failures
        self.notes += plan.notes
        self.left_out |= plan.left_out
        return bool(plan.jobs)

    def add(self, report: RunReport) -> None:
        """Count one pipeline run."""
        self.frames += report.frames
        self.seconds += report.seconds
        spent: dict[str, tuple[float, float]] = {
            stage: (report.clock.times[stage].wall, report.clock.times[stage].cpu) for stage in STAGES
        }
        self.spend({**spent, "other": (0.0, report.clock.other())})

    def spend(self, spent: Mapping[str, tuple[float, float]]) -> None:
        """Count (wall, CPU) seconds by stage."""
        for stage, (wall, cpu) in spent.items():
            before = self.seconds_by_stage.get(stage, (0.0, 0.0))
            self.seconds_by_stage[stage] = before[0] + wall, before[1] + cpu

    def merge(self, part: Summary) -> None:
        """Count what a part of the run did; its seconds are not those of the whole."""
        self.results += part.results
        self.failures += part.failures
        self.frames += part.frames
        self.spend(part.seconds_by_stage)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "runs_on": self.runs_on,
            "results": [result.to_dict() for result in self.results],
            "failures": [{"source": os.fspath(item.source), "error": item.error} for item in self.failures],
            "notes": self.notes,
            "left_out": self.left_out,
            "frames": self.frames,
            "seconds": round(self.seconds, 4),
            "frames_per_second": round(self.frames_per_second, 3),
            "network_share": round(self.network_share, 4),
            "seconds_by_stage": {
                stage: {"wall": round(wall, 4), "cpu": round(cpu, 4)}
                for stage, (wall, cpu) in self.seconds_by_stage.items()
            },
            **({"workers": self.workers} if self.workers else {}),
        }


def run(config: RunConfig, listener: ProgressListener, summary: Summary | None = None) -> Summary:
    """Process all inputs.

    Args:
        config: What to run.
        listener: Receives progress callbacks.
        summary: Filled during the run, so that an interrupted caller still has what was done.

    Raises:
        UsageError: The plan cannot be carried out; nothing has been done.
        BasnetError: The model cannot be opened or run.
    """
    summary = summary if summary is not None else Summary()
    plan, journal = plan_run(config)
    if not summary.begin(plan):
        return summary
    with _working(config, listener, summary, journal, plan.jobs) as work:
        work.run(plan.jobs)
    return summary


def follow(
    config: RunConfig,
    listener: ProgressListener,
    summary: Summary | None = None,
    on_look: Callable[[], None] = lambda: None,
) -> Summary:
    """Watch folders and process what is there and every new file, until Ctrl-C.

    Args:
        config: What to run.
        listener: Receives progress callbacks.
        summary: Filled during the run.
        on_look: Called after each look that found something to do.

    Raises:
        UsageError: An input is no folder.
        BasnetError: The model cannot be opened or run.
    """
    summary = summary if summary is not None else Summary()
    check_watched(config.inputs)
    stable, folders = StableFiles(), {Path(text) for text in config.inputs}
    plan = _named(config)
    journal = Journal.of(plan, config)
    with _working(config, listener, summary, journal, plan.jobs) as work, suppress(KeyboardInterrupt):
        while True:
            plan = _named(config, stable.wanted)
            stable.end_look()
            jobs = _at_once(config, plan, journal, summary, folders)
            if jobs:
                work.run(jobs)
            if plan.jobs:
                on_look()
            time.sleep(LOOK_SECONDS)
    summary.left_out |= plan.left_out
    summary.notes += left_out_note(plan.left_out)
    return summary


def _at_once(config: RunConfig, plan: Plan, journal: Journal | None, summary: Summary, folders: set[Path]) -> list[Job]:
    """What can be done of a look; the rest is noted as failed. That a folder holds nothing yet is no failure."""
    finished = frozenset[Path]() if journal is None else journal.finished(plan.jobs)
    jobs, failures = one_by_one(plan, overwrite=config.overwrite, skip_existing=config.skip_existing, finished=finished)
    summary.failures += [failure for failure in failures if failure.source not in folders]
    fit, unfit = _fit(config, jobs, refuse=False)
    summary.failures += unfit
    return fit


@contextmanager
def _working(
    config: RunConfig, listener: ProgressListener, summary: Summary, journal: Journal | None, jobs: Sequence[Job]
) -> Iterator[Work]:
    """The opened model and the journal, as long as there is work."""
    with opened_model(config) as model, opencv_out_of_the_way(config.device):
        summary.model, summary.runs_on = model.name, model.backend.description
        with nullcontext() if journal is None else journal.writing(jobs):
            yield Work(
                config=config,
                model=model,
                composer=composer_of(config),
                journal=journal,
                listener=listener,
                summary=summary,
            )


def plan_run(config: RunConfig) -> tuple[Plan, Journal | None]:
    """Find what is left to do, and the record of the job where it has a folder."""
    if any(is_address(text) or camera_of(text) is not None for text in config.inputs):
        from basnet_runtime.command.run_video import stream_plan

        streams = stream_plan(config.inputs, config.output)
        plan = without_finished(streams, overwrite=config.overwrite, skip_existing=config.skip_existing)
        return checked(config, plan), None
    plan = _named(config)
    journal = Journal.of(plan, config)
    finished = frozenset[Path]() if journal is None else journal.finished(plan.jobs)
    if (config.video.resume or config.cluster) and not config.overwrite:
        from basnet_runtime.command.run_video import clear_finished

        finished |= clear_finished(plan.jobs, config, run_settings(config))
    plan = without_finished(plan, overwrite=config.overwrite, skip_existing=config.skip_existing, finished=finished)
    return checked(config, plan), journal


def checked(config: RunConfig, plan: Plan, check: Callable[[RunConfig, Job], None] | None = None) -> Plan:
    """Drop inputs that fail the check of their output, by `check_job` or `check`."""
    fit, unfit = _fit(config, plan.jobs, refuse=True, check=check)
    return replace(plan, jobs=tuple(fit), failures=(*plan.failures, *unfit))


def _fit(
    config: RunConfig, jobs: Sequence[Job], *, refuse: bool, check: Callable[[RunConfig, Job], None] | None = None
) -> tuple[list[Job], list[Failure]]:
    """Split jobs by whether their output can hold the result.

    Raises:
        UsageError: One cannot, and `refuse` asks for the end of the run.
    """
    fit, unfit = [], []
    for job in jobs:
        try:
            (check or check_job)(config, job)
            fit.append(job)
        except Exception as error:
            if refuse and isinstance(error, BasnetError) and error.exit_code != 1:
                raise
            unfit.append(failure_of(job.source, error))
    return fit, unfit


def _named(config: RunConfig, wanted: Callable[[Path], bool] = lambda _: True) -> Plan:
    """The inputs with the names of their outputs."""
    return plan_jobs(
        config.inputs,
        kind=config.kind,
        suffix_of=partial(result_suffix, config),
        output=config.output,
        recursive=config.recursive,
        keep_suffix=config.keep_suffix,
        wanted=wanted,
    )


def result_suffix(config: RunConfig, path: Path, media: Media) -> str:
    """Choose the format of an input's result.

    Raises:
        MediaError: The input cannot be read.
    """
    if media == "picture":
        return f".{config.picture_format or 'png'}"
    if media == "animation":
        from basnet_runtime.media.image.animation import animation_suffix

        return animation_suffix(path, config.kind, config.picture_format)
    from basnet_runtime.media.video.write.container import default_suffix

    return default_suffix(path, config.kind, config.video)


def check_job(config: RunConfig, job: Job) -> None:
    """Refuse an output that cannot hold the result.

    Raises:
        UsageError: With what can.
        MediaError: The input's own defect.
    """
    if config.page is not None and job.media != "picture":
        raise MediaError(f"{job.source}: is {_ARTICLES[job.media]}; --page is for pictures")
    if job.media == "picture":
        from basnet_runtime.media.image.pictures import check_picture_output

        suffix = job.target.suffix.lower()
        if config.picture_format not in (None, _FORMATS.get(suffix, suffix[1:])):
            raise UsageError(f"{job.target}: is no {config.picture_format}; leave --format out, or name it so")
        check_picture_output(job.target, alpha=config.kind.has_alpha)
    elif job.media == "animation":
        from basnet_runtime.media.image.animation import check_animation_output

        check_animation_output(job.target, config.kind)
    else:
        from basnet_runtime.command.run_video import check_video_output

        check_video_output(job, config)


_ARTICLES = {"animation": "an animation", "video": "a video"}
_FORMATS = {".jpeg": "jpg", ".tif": "tiff"}


def opened_model(config: RunConfig) -> SaliencyModel:
    """Open the model of a configuration; errors as of `open_model`."""
    from basnet_runtime.open import open_model

    return open_model(config.model, **config.model_options())


def composer_of(config: RunConfig) -> Composer:
    """Make what composes the results of a configuration."""
    return Composer(config.kind, threshold=config.threshold, feather=config.feather, refine_edges=config.refine_edges)


@contextmanager
def opencv_out_of_the_way(device: Device) -> Iterator[None]:
    """Limit OpenCV to one thread while the network uses the same CPU cores."""
    import cv2

    before = cv2.getNumThreads()
    if device.on_cpu:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)  # the caller's own work continues as before


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What all jobs of a run share; `joins` and `alive` as of `VideoRun`."""

    config: RunConfig
    model: SaliencyModel
    composer: Composer
    journal: Journal | None
    listener: ProgressListener
    summary: Summary
    joins: bool = False
    alive: Callable[[], None] = lambda: None

    def run(self, jobs: Sequence[Job]) -> None:
        """Pictures together, then animations and video one by one."""
        pictures = [job for job in jobs if job.media == "picture"]
        if pictures:
            self._pictures(pictures)
        for job in jobs:
            if job.media != "picture":
                self._alone(job, self._animation if job.media == "animation" else self._video)

    def _pictures(self, jobs: list[Job]) -> None:
        from basnet_runtime.command.picture_files import PictureSink, PictureSource
        from basnet_runtime.media.compose.large import LARGE_PIXELS

        source = PictureSource(
            jobs,
            max_pixels=self.config.max_pixels,
            page=self.config.page,
            check_size=self.model.check_size,
            put_aside=None if self.model.takes_frames else LARGE_PIXELS,
        )
        sink = PictureSink(jobs, overwrite=self.config.overwrite, journal=self.journal)
        self.listener.started("pictures" if len(jobs) > 1 else jobs[0].source.name, len(jobs))
        lost: list[Failure] = []
        pipeline = self._pipeline(
            lambda _: self.listener.advanced(),
            on_failure=lambda frame, error: lost.append(failure_of(jobs[frame.index].source, error)),
            overlap=len(jobs) > 1,
        )
        try:
            self.summary.add(pipeline.run(source, sink))
        finally:
            self.summary.failures += source.failures + lost + sink.failures
            for index, decision in sorted(sink.written.items()):
                decisions = SalienceLog()
                decisions.add(decision)
                notes = source.notes.get(index, [])
                self.summary.results.append(self._result(jobs[index], 1, decisions, notes))
        for job in source.aside:
            self._alone(job, self._large)

    def _large(self, job: Job) -> Result:
        from basnet_runtime.media.compose.large import run_large
        from basnet_runtime.media.image.pictures import PictureFile

        start, decisions = time.perf_counter(), SalienceLog()
        config = self.config
        with PictureFile(job.source, max_pixels=config.max_pixels, page=config.page) as picture:
            decision = run_large(
                picture,
                job.target,
                model=self.model,
                postprocess=self.model.postprocessor(empty_weak=config.empty_weak),
                composer=self.composer,
                overwrite=config.overwrite,
            )
        decisions.add(decision)
        self.listener.advanced()
        self.summary.frames += 1
        self.summary.seconds += time.perf_counter() - start
        return self._result(job, 1, decisions, tuple(dict.fromkeys(picture.notes)))  # it was read twice

    def _alone(self, job: Job, make: Callable[[Job], Result | None]) -> None:
        """One animation, video or large picture; its own failure ends it alone."""
        try:
            with noted(self.journal, job):
                result = make(job)
        except Exception as error:
            if isinstance(error, BasnetError) and error.exit_code != 1:
                raise
            if not isinstance(error, BasnetError):
                self._pipeline(lambda _: None).raise_where_all_fail(error)
            self.summary.failures.append(failure_of(job.source, error))
        else:
            if result is not None:
                self.summary.results.append(result)

    def _animation(self, job: Job) -> Result:
        from basnet_runtime.media.image.animation import AnimationSink, AnimationSource

        decisions = SalienceLog()

        def done(item: ResultFrame) -> None:
            decisions.add(item.decision)
            self.listener.advanced()

        with AnimationSource(job.source, max_pixels=self.config.max_pixels) as source:
            info = source.info
            self.model.check_size(str(job.source), info.height, info.width)
            sink = AnimationSink(job.target, info, overwrite=self.config.overwrite)
            self.listener.started(job.source.name, len(info.delays))
            report = self._pipeline(done, stream=True).run(source, sink)
        self.summary.add(report)
        return self._result(job, report.frames, decisions, source.notes)

    def make_segments(self, job: Job, segments: range) -> None:
        """Encode some segments of a video shared by machines; its failure is recorded."""
        self._alone(job, partial(self._segments, segments=segments))

    def _segments(self, job: Job, segments: range) -> None:
        report = self._video_run(job).run_segments(segments)
        if report is not None:
            self.summary.add(report)

    def _video_run(self, job: Job) -> VideoRun:
        from basnet_runtime.command.run_video import VideoRun

        runs_on = without_threads(self.model.backend.description)
        return VideoRun(
            job=job,
            config=self.config,
            listener=self.listener,
            model=self.model,
            pipeline=partial(self._pipeline, stream=True),
            identity={**run_settings(self.config), "runs on": f"{self.model.name}, {runs_on}"},
            joins=self.joins,
            alive=self.alive,
        )

    def _video(self, job: Job) -> Result:
        video = self._video_run(job)
        try:
            report = video.run()
        except KeyboardInterrupt:
            if video.kept is not None:
                video.notes.append(f"interrupted: {video.kept} holds what was done until then")
                self.summary.results.append(self._of_video(replace(job, target=video.kept), video))
            self.summary.notes += [f"{job.source}: {note}" for note in video.notes if video.kept is None]
            raise
        self.summary.add(report)
        return self._of_video(job, video)

    def _pipeline(self, on_frame: Callable[[ResultFrame], None], **options: Any) -> Pipeline:
        config = self.config
        return Pipeline(
            self.model,
            self.composer,
            batch=config.batch,
            on_frame=on_frame,
            stabilize=config.stabilize,
            empty_weak=config.empty_weak,
            **options,
        )

    def _of_video(self, job: Job, video: VideoRun) -> Result:
        result = self._result(job, video.frames, video.decisions, video.notes)
        return replace(result, coding=video.coding, complete=video.complete)

    def _result(self, job: Job, frames: int, decisions: SalienceLog, notes: Sequence[str]) -> Result:
        weak = decisions.note(emptied=self.config.empty_weak)
        told = tuple(notes) if weak is None else (*notes, weak)
        return Result(source=job.source, target=job.target, frames=frames, decisions=decisions, notes=told)
