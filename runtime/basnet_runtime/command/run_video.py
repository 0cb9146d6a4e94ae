"""One video of a `basnet-run`: from its source through the pipeline to its sink, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_runtime.command.jobs import Job, Plan
from basnet_runtime.frame import ResultFrame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.open import camera_of, is_address
from basnet_runtime.media.video.options import Span, VideoOptions
from basnet_runtime.media.video.write.numbered_pictures import SequenceSink, check_sequence, is_sequence
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.run import Pipeline, RunReport
from basnet_runtime.salience import SalienceLog
from basnet_torch.errors import UsageError
from basnet_torch.files import file_identity

if TYPE_CHECKING:
    from basnet_runtime.media.video.camera import CameraSource
    from basnet_runtime.media.video.reader import VideoSource
    from basnet_runtime.media.video.write.segments import SegmentedSink
    from basnet_runtime.media.video.write.sink import VideoSink

__all__ = ["VideoRun", "check_video_output", "clear_finished", "stream_plan"]


def check_video_output(
    source: Path | str, target: Path, kind: OutputKind, options: VideoOptions, *, overwrite: bool
) -> None:
    """Refuse an output that cannot hold the result, before any work.

    Raises:
        UsageError: With what can.
        MediaError: The source cannot be read as media.
    """
    from basnet_runtime.media.video.write.container import check_output

    once = camera_of(source) is not None or is_address(source)
    if options.resume and (once or is_sequence(target)):
        what = f"{source}, which cannot be read twice" if once else "numbered pictures; name a video file"
        raise UsageError(f"--resume does not go with {what}")
    if is_sequence(target):
        if options.codec is not None or options.quality is not None:
            raise UsageError("--codec and --quality are for video; numbered pictures are written without loss")
        check_sequence(target, kind, overwrite=overwrite)
    else:
        check_output(source, target, kind, options)


def stream_plan(inputs: Sequence[str], output: str | None) -> Plan:
    """The plan for inputs of which at least one is a camera or network stream.

    Raises:
        UsageError: There is something else beside it, or no output is named.
    """
    stream = next(text for text in inputs if is_address(text) or camera_of(text) is not None)
    if len(inputs) > 1 or output is None or output == "-" or not Path(output).suffix:
        raise UsageError(f"{stream}: a camera or network stream is run alone, into a file: -o FILE")
    job = Job(source=Path(stream), target=Path(output), media="video", stream=stream)
    return Plan(jobs=(job,))


def clear_finished(
    jobs: Sequence[Job], *, kind: OutputKind, options: VideoOptions, identity: Mapping[str, Any], batch: int
) -> frozenset[Path]:
    """Targets that a run of the same command was killed just after completing.

    Its segments, which still lie beside them, are removed; those of any other run are left as they are.
    """
    from basnet_runtime.media.video.write.segments import remove_joined, segments_folder

    return frozenset(
        job.target
        for job in jobs
        if job.media == "video"
        and segments_folder(job.target).is_dir()
        and remove_joined(job.target, {**identity, **_asked(job.source, kind=kind, options=options, batch=batch)})
    )


def _asked(source: Path | str, *, kind: OutputKind, options: VideoOptions, batch: int) -> dict[str, Any]:
    """What the result's bytes depend on: the source as it is now, and what was asked of the video."""
    return {
        "source": file_identity(Path(source)),
        "kind": kind.identity,
        "codec": options.codec,
        "quality": options.quality,
        "start": str(options.span.start),
        "end": str(options.span.end),
        "sound": options.sound,
        "subtitles": options.subtitles,
        "track": options.track,
        "batch": batch,
    }


@dataclass(kw_only=True)
class VideoRun:
    """One video to do. After `run`, or its interruption, the rest says what was done.

    Attributes:
        source: A file, an address or a camera.
        target: A video file, or a name with a number in it.
        kind: What is made.
        options: How.
        identity: All else that decides the result's bytes, as plain values.
        overwrite: An existing result may be replaced.
        batch: Frames per network run.
        max_pixels: Larger frames are refused.
        model: What finds the masks.
        pipeline: Makes the pipeline, given what it calls after each frame and more of `Pipeline`'s arguments.
        started: Is told the number of frames to come, 0 when unknown.
        advanced: Is told of every frame.
        decisions: Of the frames done.
        notes: What a user should know.
        coding: Which decoder and encoder ran, and on what.
        kept: What an interrupted run left, or None.
        frames: In the result, so far.
        complete: Whether everything that was asked is in it.
    """

    source: Path | str
    target: Path
    kind: OutputKind
    options: VideoOptions
    identity: Mapping[str, Any]
    overwrite: bool
    batch: int
    max_pixels: int
    model: SaliencyModel
    pipeline: Callable[..., Pipeline]
    started: Callable[[int], None]
    advanced: Callable[[], None]
    decisions: SalienceLog = field(default_factory=SalienceLog)
    notes: list[str] = field(default_factory=list)
    coding: str = ""
    kept: Path | None = None
    frames: int = 0
    complete: bool = False

    def run(self) -> RunReport:
        """Do it.

        Raises:
            BasnetError: It cannot be read, run or written.
            KeyboardInterrupt: As it came; `kept` and `notes` say what is left.
        """
        if self.options.resume:
            return self._in_segments()
        with self._opened() as source:
            sink = self._sink(source)
            return self._through(source, sink)

    def _opened(self, skip: int = 0) -> CameraSource | VideoSource:
        from basnet_runtime.media.video.camera import CameraSource
        from basnet_runtime.media.video.reader import VideoSource

        camera = camera_of(self.source)
        if camera is not None:
            return CameraSource(camera, span=self.options.span)
        options = self.options
        return VideoSource(
            self.source,
            span=options.span,
            skip=skip,
            hwaccel=options.hwaccel,
            max_pixels=self.max_pixels,
            track=options.track,
        )

    def _sink(self, source: CameraSource | VideoSource) -> VideoSink | SequenceSink:
        from basnet_runtime.media.video.write.sink import VideoSink

        if is_sequence(self.target):
            return SequenceSink(self.target, source.info, overwrite=self.overwrite)
        return VideoSink(
            self.target,
            source.info,
            self.kind,
            overwrite=self.overwrite,
            options=self.options,
            passthrough=lambda: source.passthrough,
            whole=lambda: source.whole,
            endless=isinstance(self.source, str) and not source.info.seconds,
        )

    def _in_segments(self) -> RunReport:
        from basnet_runtime.media.video.write.segments import SEGMENT_FRAMES, SegmentedSink
        from basnet_runtime.media.video.write.sink import OutputPlan

        every = -(-SEGMENT_FRAMES // self.batch) * self.batch  # batches of a continued run are those of a whole one
        with self._opened() as source:
            plan = OutputPlan(
                target=self.target,
                info=source.info,
                kind=self.kind,
                options=self.options,
                passthrough=lambda: source.passthrough,
                whole=lambda: source.whole,
                overwrite=self.overwrite,
            )
        sink = SegmentedSink(plan, self._identity(), segment_frames=every)
        try:
            source = self._opened(skip=sink.frames_done)
        except BaseException:
            sink.abort()
            raise
        with source:
            self.frames = sink.frames_done
            for decision in sink.decisions:
                self.decisions.add(decision)
            if sink.frames_done:
                self.notes.append(f"continued after {sink.frames_done} frames of an earlier run")
            return self._through(source, sink, memory=sink.memory, remember=every)

    def _identity(self) -> dict[str, Any]:
        return {
            **self.identity,
            **_asked(self.source, kind=self.kind, options=self.options, batch=self.batch),
        }

    def _through(
        self, source: CameraSource | VideoSource, sink: VideoSink | SequenceSink | SegmentedSink, **memory: Any
    ) -> RunReport:
        info = source.info
        self.model.check_size(str(self.source), info.height, info.width)
        known = self.options.span == Span()
        total = (info.frames or round(info.seconds * info.rate)) if known else 0
        self.started(max(0, total - self.frames))
        try:
            report = self.pipeline(self._done, **memory).run(source, sink)
            self.complete = not source.broken
            return report
        finally:
            self.notes += source.warnings + sink.warnings
            self.coding = f"decoded by {source.decoder}; encoded by {sink.encoder}" if sink.encoder else ""
            self.kept = sink.kept

    def _done(self, item: ResultFrame) -> None:
        self.decisions.add(item.decision)
        self.frames += 1
        self.advanced()
