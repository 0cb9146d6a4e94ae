"""Resumable video: encoded segments on disk, joined at the end.

    sink = SegmentedSink(plan, identity={"model": "..."})
    source = VideoSource(path, skip=sink.frames_done)

Beside `clip.mask.mp4` lies the folder `clip.mask.mp4.segments` during the run: `job.json`, which says for what, and
one file for each finished segment, written atomically; at the end `joined.json` tells the result from a
file that it replaces. Every segment is encoded by an encoder of its own and keeps what the next frame's mask depends
on. So the packets do not depend on where a run was ended; joining them, with the sound, encodes nothing, and gives the
bytes of a run that was never ended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from basnet_runtime.frame import ResultFrame
from basnet_runtime.media.video.write.encoder import Encoder, open_encoder, set_up
from basnet_runtime.media.video.write.segment_file import SegmentFacts, SegmentWriter, read_facts, read_packets
from basnet_runtime.media.video.write.sink import FrameEncoder, Muxer, OutputPlan, av_errors
from basnet_runtime.pipeline.timing import LibraryThreads
from basnet_runtime.salience import SalienceDecision
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import PendingFile, atomic_write, file_identity, host_token, reason, try_lock

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

__all__ = [
    "SEGMENT_FRAMES",
    "SegmentFolder",
    "SegmentRangeSink",
    "SegmentedSink",
    "frames_in_segment",
    "remove_joined",
    "segments_folder",
]

SEGMENT_FRAMES = 250  # as often as x264 sets a key frame anyway
_JOB = "job.json"
_JOINED = "joined.json"
_GLOBAL_HEADER = 1 << 22  # AV_CODEC_FLAG_GLOBAL_HEADER: every container here wants it


def frames_in_segment(batch: int) -> int:
    """Return the frames of a segment: whole batches, so that resumed runs are equal."""
    return -(-SEGMENT_FRAMES // batch) * batch


def segments_folder(target: Path) -> Path:
    """Where the segments of a result lie while it is made."""
    return target.with_name(f"{target.name}.segments")


def remove_joined(target: Path, identity: Mapping[str, Any]) -> bool:
    """Remove segments of a complete result whose run was killed before that.

    Args:
        target: The result.
        identity: The values of its job that are known; the segments of another one stay, as do those of a live run.

    Returns:
        Whether the target is that result.
    """
    folder = segments_folder(target)
    try:
        joined = json.loads((folder / _JOINED).read_text())
        known = dict(joined["job"])
        if joined["result"] != file_identity(target)[1:] or any(known.get(k) != v for k, v in _plain(identity).items()):
            return False
    except (OSError, ValueError, KeyError, TypeError):  # not joined, or not whole
        if target.exists():
            with suppress(OSError):
                folder.rmdir()  # one that is empty was all but removed
        return False
    with suppress(OSError), (folder / _JOB).open() as job:  # removed already
        try:
            try_lock(job)
        except BlockingIOError:  # its run is at the removing itself
            return False
        _remove(folder)  # while nobody else can begin
    _remove(folder)
    return True


def _remove(folder: Path) -> None:
    """Remove the folder, last of all what says that it may be removed."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name != _JOINED:
                with suppress(OSError):
                    path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    return cast("dict[str, Any]", json.loads(json.dumps(identity)))


class SegmentFolder:
    """The finished segments of one result, and for what they were made.

    Attributes:
        path: The folder.
        facts: Of the finished segments, in order.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any], *, shared: bool = False) -> None:
        """Open the folder, which is made where there is none.

        Args:
            target: The result.
            identity: All that decides its bytes, as plain values; segments made for another one are refused.
            shared: Others make segments of the same job at the same time.

        Raises:
            UsageError: The segments there are of another job, or another run works on them.
            MediaError: The folder cannot be read or written.
        """
        self.path = segments_folder(target)
        self._identity = identity
        self._lock_file: IO[str] | None = None
        job = self.path / _JOB
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not job.exists():
                with atomic_write(job, overwrite=True) as path:
                    path.write_text(json.dumps(identity, indent=2, sort_keys=True))
            self._lock_file = job.open()
            try:
                alone = try_lock(self._lock_file, shared=shared) and not shared
            except BlockingIOError:
                raise UsageError(f"{self.path}: another run is working on it; wait for it") from None
            self._compare(job.read_text(), identity)
            # Without locks nobody can say who else is there: only what this host left is removed.
            for path in (
                self.path.glob(".*.partial*" if alone else f".*-{host_token()}-*.partial*") if not shared else ()
            ):
                path.unlink(missing_ok=True)
            self.facts = [] if shared else [read_facts(path) for path in self.paths()]
        except OSError as error:
            self.close()
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{self.path}: cannot be used: {reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def _compare(self, text: str, identity: Mapping[str, Any]) -> None:
        try:
            known = json.loads(text)
        except ValueError:
            known = {}
        wanted = _plain(identity)
        if known != wanted:
            names = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
            raise UsageError(
                f"{self.path}: was begun with another {' and '.join(sorted(names))}; run it as it was begun, or remove "
                "that folder to begin anew"
            )

    def paths(self) -> list[Path]:
        """The finished segments without a gap, in order."""
        paths: list[Path] = []
        while (path := self.segment(len(paths))).exists():
            paths.append(path)
        return paths

    def segment(self, number: int) -> Path:
        """The file of one segment."""
        return self.path / f"{number:06d}.segment"

    def note_joined(self, result: Path) -> None:
        """Say that this file, about to get the result's name, is whole."""
        note = {"result": file_identity(result)[1:], "job": self._identity}  # its size and time survive renaming
        (self.path / _JOINED).write_text(json.dumps(note, indent=2, sort_keys=True))

    def close(self) -> None:
        """Let others use it."""
        if self._lock_file is not None:
            self._lock_file.close()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self.close()
        _remove(self.path)


class SegmentedSink:
    """One output video, made in segments that survive the end of the process.

    Attributes:
        warnings: For the user, about the output; complete after `finish`.
        encoder: Which encoder runs, and on what.
        kept: None: what an interrupted run has done is continued, not played.
        frames_done: Frames in finished segments.
        decisions: Of these frames.
    """

    _shared = False

    def __init__(self, plan: OutputPlan, identity: Mapping[str, Any], *, segment_frames: int = SEGMENT_FRAMES) -> None:
        """Find what earlier runs have done.

        Raises:
            UsageError: See `SegmentFolder`.
            MediaError: See `SegmentFolder`.
        """
        self.warnings: list[str] = []
        self.encoder = ""
        self.codec_threads = LibraryThreads()
        self.kept: Path | None = None
        self._plan = plan
        self._every = segment_frames
        self._folder = SegmentFolder(plan.target, {**identity, "segment frames": segment_frames}, shared=self._shared)
        self._facts = self._folder.facts
        self._first = 0
        self._segment: _Segment | None = None
        self._joined: PendingFile | None = None

    @property
    def frames_done(self) -> int:
        """Frames that need not be done again."""
        return sum(len(facts.decisions) for facts in self._facts)

    @property
    def decisions(self) -> list[SalienceDecision]:
        """Of the frames that need not be done again."""
        return [decision for facts in self._facts for decision in facts.decisions]

    @property
    def memory(self) -> dict[str, NDArray[Any]]:
        """What the mask of the next frame depends on."""
        return self._facts[-1].memory if self._facts else {}

    def write(self, item: ResultFrame) -> None:
        """Encode one result; the last one of a segment finishes it.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        with av_errors(self._plan.target):
            if self._segment is None:
                with self.codec_threads.adopt():
                    self._segment = self._begun(item)
                    self._segment.write(item)
            else:
                self._segment.write(item)
            if self._segment.frames == self._every:
                self._end(self._segment)

    def finish(self) -> None:
        """Finish the last segment, join all, and give the result its name.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        with av_errors(self._plan.target):
            if self._segment is not None:
                self._end(self._segment)
            if not self._facts:
                raise MediaError(f"{self._plan.target}: there was no frame to write")
            self._join()
        self._folder.remove()

    def abort(self) -> None:
        """Leave the finished segments and nothing else."""
        if self._segment is not None:
            self._segment.discard()
            self._segment = None
        if self._joined is not None:
            self._joined.discard()
        self._folder.close()
        if not self._facts:  # nothing to continue from
            self._folder.remove()

    def interrupt(self) -> None:
        """The finished segments are kept."""
        if self._facts:
            self.warnings.append(f"{self.frames_done} frames are kept; the same command continues after them")
        else:
            self.warnings.append(f"nothing is kept yet: what --resume continues are segments of {self._every} frames")

    def _begun(self, item: ResultFrame) -> _Segment:
        plan = self._plan.sized(item)
        encoder = plan.encoder()
        self.encoder = encoder.described
        if self._facts and self._facts[-1].library != encoder.library:
            raise MediaError(
                f"{self._folder.path}: was begun with {self._facts[-1].library}, and here it is {encoder.library}; "
                "choose another --hwaccel, or remove that folder to begin anew"
            )
        return _Segment(self._folder.segment(self._first + len(self._facts)), plan, encoder)

    def _end(self, segment: _Segment) -> None:
        facts = segment.finish()
        self.codec_threads.collect()
        self._facts.append(facts)
        self._segment = None

    def _join(self) -> None:
        first = self._facts[0]
        libraries = sorted({facts.library for facts in self._facts})
        if len(libraries) > 1:
            raise MediaError(
                f"{self._folder.path}: holds segments of {' and '.join(libraries)}; run all with one --hwaccel, and "
                "remove that folder to begin anew"
            )
        plan = replace(self._plan, info=replace(self._plan.info, height=first.height, width=first.width))
        encoder = plan.encoder()
        self.encoder = encoder.described
        self._joined = PendingFile(self._folder.path / f"joined{plan.target.suffix}", overwrite=plan.overwrite)
        muxer = Muxer(self._joined.path, plan, encoder)
        try:
            for number in range(len(self._facts)):
                for packet in read_packets(self._folder.segment(number)):
                    packet.time_base = plan.info.time_base
                    muxer.mux(packet)
            muxer.finish(to_the_end=plan.whole())
        finally:
            muxer.close()
        self.warnings += muxer.warnings
        self._folder.note_joined(self._joined.path)
        self._joined.commit(plan.target)


class SegmentRangeSink(SegmentedSink):
    """Segments of an output shared by machines; a `SegmentedSink` joins them."""

    _shared = True

    def __init__(self, plan: OutputPlan, identity: Mapping[str, Any], *, segment_frames: int, segments: range) -> None:
        """Find which of the segments are there; errors as of `SegmentFolder`."""
        super().__init__(plan, identity, segment_frames=segment_frames)
        self._first = next((n for n in segments if not self._folder.segment(n).exists()), segments.stop)
        self.missing = range(self._first, segments.stop)

    @property
    def memory(self) -> dict[str, NDArray[Any]]:
        """Return what the next frame's mask depends on, if the segment before it exists."""
        if self._facts:
            return super().memory
        before = self._folder.segment(self._first - 1)
        return read_facts(before).memory if self._first and before.exists() else {}

    def finish(self) -> None:
        """Finish the last segment of the video; all others are finished.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        with av_errors(self._plan.target):
            if self._segment is not None:
                self._end(self._segment)
        self._folder.close()

    def abort(self) -> None:
        """Leave the finished segments."""
        if self._segment is not None:
            self._segment.discard()
            self._segment = None
        self._folder.close()


class _Segment:
    """The segment in hand."""

    def __init__(self, path: Path, plan: OutputPlan, encoder: Encoder) -> None:
        import av

        context = cast("VideoCodecContext", av.CodecContext.create(encoder.library, "w"))
        set_up(context, encoder, plan.info)
        context.flags |= _GLOBAL_HEADER
        open_encoder(context)
        self._frames = FrameEncoder(context, encoder, plan.info)
        self._file = SegmentWriter(path)
        self._facts = SegmentFacts(library=encoder.library, height=plan.info.height, width=plan.info.width)

    @property
    def frames(self) -> int:
        return len(self._facts.decisions)

    def write(self, item: ResultFrame) -> None:
        for packet in self._frames.encode(item):
            self._file.add(packet)
        self._facts.decisions.append(item.decision)
        if item.memory is not None:
            self._facts.memory = item.memory

    def finish(self) -> SegmentFacts:
        for packet in self._frames.flush():
            self._file.add(packet)
        self._file.commit(self._facts)
        return self._facts

    def discard(self) -> None:
        self._file.discard()
