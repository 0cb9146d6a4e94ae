"""Run one video from its source through the pipeline to its sink."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from basnet_runtime.cluster.buckets import url_of
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Job, Plan, ProgressListener
from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.media.video.open import camera_of, is_address
from basnet_runtime.media.video.options import Span
from basnet_runtime.media.video.write.numbered_pictures import SequenceSink, check_sequence, is_sequence
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.queues import ByteBudget
from basnet_runtime.pipeline.run import Pipeline, RunReport
from basnet_runtime.pipeline.timing import StageClock
from basnet_runtime.salience import SalienceLog, SalienceThreshold
from basnet_torch.errors import BasnetError, UsageError
from basnet_torch.files import file_identity

if TYPE_CHECKING:
    from basnet_runtime.media.video.camera import CameraSource
    from basnet_runtime.media.video.reader import VideoSource
    from basnet_runtime.media.video.stream_info import VideoStreamInfo
    from basnet_runtime.media.video.write.segments import SegmentedSink
    from basnet_runtime.media.video.write.sink import OutputPlan, VideoSink

__all__ = ["VideoRun", "check_video_output", "clear_finished", "segments_of", "stream_plan"]


def check_video_output(job: Job, config: RunConfig) -> None:
    """Refuse an output that cannot hold the result, before any work.

    Raises:
        UsageError: With what can.
        MediaError: The source cannot be read as media.
    """
    from basnet_runtime.media.video.write.container import check_output

    source, target, options = job.stream or job.source, job.target, config.video
    once = camera_of(source) is not None or is_address(source)
    if options.resume and (once or is_sequence(target)):
        what = f"{source}, which cannot be read twice" if once else "numbered pictures; name a video file"
        raise UsageError(f"--resume does not go with {what}")
    if is_sequence(target):
        if options.codec is not None or options.quality is not None:
            raise UsageError("--codec and --quality are for video; numbered pictures are written without loss")
        check_sequence(target, config.kind, overwrite=config.overwrite)
    else:
        check_output(source, target, config.kind, options)


def stream_plan(inputs: Sequence[str], output: str | None) -> Plan:
    """Plan inputs of which at least one is a camera or network stream.

    Raises:
        UsageError: There is something else beside it, or no output is named.
    """
    stream = next(text for text in inputs if is_address(text) or camera_of(text) is not None)
    if len(inputs) > 1 or output is None or output == "-" or not Path(output).suffix:
        raise UsageError(f"{stream}: a camera or network stream is run alone, into a file: -o FILE")
    return Plan(jobs=(Job(source=Path(stream), target=Path(output), media="video", stream=stream),))


def segments_of(job: Job, config: RunConfig) -> int:
    """Return about how many segments machines make of a video; 0 for one task.

    A stabilized mask depends on all frames before it, numbered pictures are no segments, and a video of one segment is
    run as it is without `--resume`.
    """
    from basnet_runtime.media.video.reader import VideoSource
    from basnet_runtime.media.video.write.segments import frames_in_segment

    in_bucket = url_of(job.source) or url_of(job.target)
    if job.media != "video" or config.stabilize or is_sequence(job.target) or in_bucket:
        return 0
    try:
        with VideoSource(job.source, max_pixels=config.max_pixels, track=config.video.track) as source:
            frames = source.info.frames or round(source.info.seconds * source.info.rate)
    except BasnetError:  # whoever runs it says why
        return 0
    segments = -(-frames // frames_in_segment(config.batch))
    return segments if segments > 1 else 0


def clear_finished(jobs: Sequence[Job], config: RunConfig, identity: Mapping[str, Any]) -> frozenset[Path]:
    """Find targets finished by a run killed just after; remove their segments.

    Segments of any other run are left as they are.
    """
    from basnet_runtime.media.video.write.segments import remove_joined, segments_folder

    return frozenset(
        job.target
        for job in jobs
        if job.media == "video"
        and segments_folder(job.target).is_dir()
        and remove_joined(job.target, {**identity, **_asked(job, config)})
    )


def _asked(job: Job, config: RunConfig) -> dict[str, Any]:
    """What the result's bytes depend on: the source as it is now, and what was asked of the video."""
    options = config.video
    return {
        "source": file_identity(job.source),
        "kind": config.kind.identity,
        "codec": options.codec,
        "quality": options.quality,
        "start": str(options.span.start),
        "end": str(options.span.end),
        "sound": options.sound,
        "subtitles": options.subtitles,
        "track": options.track,
        "batch": config.batch,
    }


@dataclass(kw_only=True)
class VideoRun:
    """One video to do. After `run`, or its interruption, the rest says what was done.

    Attributes:
        job: Its source and target.
        config: How.
        listener: Receives progress callbacks.
        model: Finds the masks.
        pipeline: Makes the pipeline, given what it calls after each frame and more of `Pipeline`'s arguments.
        identity: What else decides the result's bytes, as plain values.
        joins: Whether segments that are there are of this run, made by others.
        alive: Called where frames are passed over, which are no progress.
        decisions: Of the frames done.
        notes: What a user should know.
        coding: Which decoder and encoder ran, and on what.
        kept: What an interrupted run left, or None.
        frames: In the result, so far.
        complete: Whether everything that was asked is in it.
    """

    job: Job
    config: RunConfig
    listener: ProgressListener
    model: SaliencyModel
    pipeline: Callable[..., Pipeline]
    identity: Mapping[str, Any] = field(default_factory=dict)
    joins: bool = False
    alive: Callable[[], None] = lambda: None
    decisions: SalienceLog = field(default_factory=SalienceLog)
    notes: list[str] = field(default_factory=list)
    coding: str = ""
    kept: Path | None = None
    frames: int = 0
    complete: bool = False

    def run(self) -> RunReport:
        """Read, compute and write every frame.

        Raises:
            BasnetError: It cannot be read, run or written.
            KeyboardInterrupt: As it came; `kept` and `notes` say what is left.
        """
        if self.config.video.resume:
            return self._in_segments()
        with self._opened() as source:
            if is_sequence(self.job.target):
                return self._through(
                    source, SequenceSink(self.job.target, source.info, overwrite=self.config.overwrite)
                )
            from basnet_runtime.media.video.write.sink import VideoSink

            endless = bool(self.job.stream) and not source.info.seconds
            return self._through(source, VideoSink(self._plan(source.info, lambda: source), endless=endless))

    def _opened(self, skip: int = 0) -> CameraSource | VideoSource:
        from basnet_runtime.media.video.camera import CameraSource
        from basnet_runtime.media.video.reader import VideoSource

        source, options = self.job.stream or self.job.source, self.config.video
        camera = camera_of(source)
        if camera is not None:
            return CameraSource(camera, span=options.span)
        return VideoSource(
            source,
            span=options.span,
            skip=skip,
            passed_over=self.alive,
            hwaccel=options.hwaccel,
            max_pixels=self.config.max_pixels,
            track=options.track,
        )

    def _plan(self, info: VideoStreamInfo, source: Callable[[], CameraSource | VideoSource]) -> OutputPlan:
        from basnet_runtime.media.video.write.sink import OutputPlan

        return OutputPlan(
            target=self.job.target,
            info=info,
            kind=self.config.kind,
            options=self.config.video,
            passthrough=lambda: source().passthrough,
            whole=lambda: source().whole,
            overwrite=self.config.overwrite,
        )

    def _in_segments(self) -> RunReport:
        from basnet_runtime.media.video.write.segments import SegmentedSink, frames_in_segment

        every = frames_in_segment(self.config.batch)
        with self._opened() as source:
            plan = self._plan(source.info, lambda: source)  # of the one that is open when the result is joined
        sink = SegmentedSink(plan, {**self.identity, **_asked(self.job, self.config)}, segment_frames=every)
        try:
            source = self._opened(skip=sink.frames_done)
        except BaseException:
            sink.abort()
            raise
        with source:
            self.frames = sink.frames_done
            for decision in sink.decisions:
                self.decisions.add(decision)
            if sink.frames_done and not self.joins:
                self.notes.append(f"continued after {sink.frames_done} frames of an earlier run")
            return self._through(source, sink, memory=sink.memory, remember=every)

    def run_segments(self, segments: range) -> RunReport | None:
        """Encode the missing ones of these segments; None where there is nothing to do.

        Raises:
            BasnetError: It cannot be read, run or written.
        """
        from basnet_runtime.media.video.write.segments import SegmentRangeSink, frames_in_segment

        every = frames_in_segment(self.config.batch)
        with self._opened() as source:
            plan = self._plan(source.info, lambda: source)
        identity = {**self.identity, **_asked(self.job, self.config)}
        sink = SegmentRangeSink(plan, identity, segment_frames=every, segments=segments)
        try:
            if not sink.missing:
                return None
            begin = sink.missing.start * every
            memory = sink.memory or self._memory_before(begin)
            source = self._opened(skip=begin)
            self.model.check_size(str(self.job.source), source.info.height, source.info.width)
            pipeline = self.pipeline(lambda _: self.listener.advanced(), memory=memory, remember=every)
            return pipeline.run(_Part(source, len(sink.missing) * every), sink)
        finally:
            sink.abort()

    def _memory_before(self, frame: int) -> dict[str, NDArray[Any]]:
        """What the mask of a frame depends on, found by running as few of the frames before as decide it.

        A score in the band between the two thresholds leaves the decision as it was: then more frames are run.
        """
        back = self.config.batch
        while frame:
            first = max(0, frame - back)
            memories = SalienceThreshold.memories()[: 2 if first else 1]
            states = [self.model.postprocessor(stream=True) for _ in memories]
            for state, memory in zip(states, memories, strict=True):
                state.recall(memory)
            with self._opened(skip=first) as source:
                frames = islice(source.frames(), frame - first)
                for _, raw in self.pipeline(lambda _: None).maps(frames, StageClock()):
                    self.alive()
                    for state in states:
                        state.decide(raw)
            found = [state.memory for state in states]
            if all(each == found[0] for each in found):
                return found[0]
            back *= 4
        return {}

    def _through(
        self, source: CameraSource | VideoSource, sink: VideoSink | SequenceSink | SegmentedSink, **memory: Any
    ) -> RunReport:
        def done(item: ResultFrame) -> None:
            self.decisions.add(item.decision)
            self.frames += 1
            self.listener.advanced()

        info = source.info
        self.model.check_size(str(self.job.stream or self.job.source), info.height, info.width)
        known = self.config.video.span == Span()
        total = (info.frames or round(info.seconds * info.rate)) if known else 0
        self.listener.started(self.job.source.name, max(0, total - self.frames))
        try:
            report = self.pipeline(done, **memory).run(source, sink)
            self.complete = not source.broken
            return report
        finally:
            self.notes += source.warnings + sink.warnings
            self.coding = f"decoded by {source.decoder}; encoded by {sink.encoder}" if sink.encoder else ""
            self.kept = sink.kept


class _Part:
    """The next frames of a source, as a source."""

    def __init__(self, source: CameraSource | VideoSource, frames: int) -> None:
        self._source = source
        self._frames = frames
        self.codec_threads = getattr(source, "codec_threads", None)

    def frames(self, budget: ByteBudget | None = None) -> Iterator[Frame]:
        return islice(self._source.frames(budget), self._frames)

    def close(self) -> None:
        self._source.close()
