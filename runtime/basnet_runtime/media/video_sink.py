"""Writing video: every result at its frame's own time, with the source's audio and subtitles copied packet by packet.

    sink = VideoSink(Path("clip.mask.mp4"), source.traits, OutputKind(), overwrite=False)

The file appears under its name when it is complete; a run that fails leaves nothing, and one that is interrupted leaves
what was done so far, playable, under a name that says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from basnet_runtime.media.compose import OutputKind
from basnet_runtime.media.files import PendingFile
from basnet_runtime.media.frame import Composed, UInt8
from basnet_runtime.media.video_encoder import (
    Encoder,
    choose_encoder,
    codec_for,
    encoded_full_range,
    refused,
    set_up,
    swscale_matrix,
)
from basnet_runtime.media.video_open import av_detail
from basnet_runtime.media.video_options import VideoOptions
from basnet_runtime.media.video_side import FORMATS, FileSide, PacketCopier, Side, copy_tags
from basnet_runtime.media.video_traits import VideoTraits
from basnet_runtime.timing import StageClock
from basnet_torch.errors import MediaError

if TYPE_CHECKING:
    import av
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

__all__ = ["FrameEncoder", "Muxer", "OutputPlan", "VideoSink", "av_errors", "partial_path"]

_BITEXACT = 0x0400  # AVFMT_FLAG_BITEXACT
_MAX_TIMESCALE = 1_000_000_000
_LIMITED, _FULL = 1, 2
_FROM_FULL_RANGE = np.rint(16 + np.arange(256) * (219 / 255)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """All that decides how one output video is written.

    Attributes:
        target: Its name.
        traits: Of the source.
        kind: What is in it.
        options: The user's choices.
        side: Opens what is copied along.
        whole: Whether the source was taken to its own end, known when the last frame is through: its sound then runs on
            to its own end too.
        overwrite: An existing file may be replaced.
    """

    target: Path
    traits: VideoTraits
    kind: OutputKind
    options: VideoOptions = field(default_factory=VideoOptions)
    side: Callable[[], Side] | None = None
    whole: Callable[[], bool] = lambda: True
    overwrite: bool = False

    def open_side(self) -> Side:
        """What is copied along, open."""
        side = FileSide(Path(self.traits.source)) if self.side is None else self.side()
        if not self.options.sound:
            side.streams = []
        return side

    def encoder(self) -> Encoder:
        """The encoder for frames of the size in `traits`."""
        codec = codec_for(self.target, self.kind, self.options)
        return choose_encoder(codec, self.target.suffix.lower(), self.kind, self.traits, self.options)

    def sized(self, item: Composed) -> OutputPlan:
        """The plan for the size that results really have, which is twice the source's where two stand side by side."""
        height, width = item.pixels.shape[:2]
        return replace(self, traits=replace(self.traits, height=height, width=width))


class VideoSink:
    """One output video. The encoder opens with the first result, so that its threads are known as its own.

    Attributes:
        warnings: What a user should know about the output; complete after `finish`.
        encoder: Which encoder runs, and on what; known after the first frame.
        kept: Where an interrupted run left what it had done, or None.
    """

    def __init__(
        self,
        target: Path,
        traits: VideoTraits,
        kind: OutputKind,
        *,
        overwrite: bool,
        options: VideoOptions | None = None,
        side: Callable[[], Side] | None = None,
        whole: Callable[[], bool] = lambda: True,
        endless: bool = False,
    ) -> None:
        """Prepare; the file is created by the first `write`. `endless`: interrupting is how such a source ends."""
        self.warnings: list[str] = []
        self.encoder = ""
        self.kept: Path | None = None
        self._plan = OutputPlan(
            target=target,
            traits=traits,
            kind=kind,
            options=options or VideoOptions(),
            side=side,
            whole=whole,
            overwrite=overwrite,
        )
        self._endless = endless
        self._file: PendingFile | None = None
        self._writer: _Writer | None = None

    def write(self, item: Composed, clock: StageClock) -> None:
        """Encode one result at its frame's time.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        with av_errors(self._plan.target):
            if self._writer is None:
                with clock.adopt("encode"):
                    self._writer = self._open(item)
                    self._writer.write(item)
            else:
                self._writer.write(item)

    def finish(self, clock: StageClock) -> None:
        """Flush, copy what is left of the audio, and give the file its name.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        if self._writer is None or self._file is None:
            raise MediaError(f"{self._plan.target}: there was no frame to write")
        with av_errors(self._plan.target):
            self._writer.flush(to_the_end=self._plan.whole())
            clock.collect("encode")
            self._writer.close()
        self.warnings += self._writer.warnings
        self._file.commit()

    def abort(self) -> None:
        """Remove what was written so far."""
        if self._writer is not None:
            with suppress(Exception):  # the trailer of a broken file, which is removed anyway
                self._writer.close()
        if self._file is not None:
            self._file.discard()

    def interrupt(self) -> None:
        """Keep what was written so far as a file that plays, under the name of `kept`."""
        if self._writer is None or self._file is None or not self._writer.frames:
            return
        try:
            with av_errors(self._plan.target):
                self._writer.flush(to_the_end=False)
                self._writer.close()
            self.warnings += self._writer.warnings
            kept = self._plan.target if self._endless else partial_path(self._plan.target)
            self._file.commit(kept)
            self.kept = kept
        finally:
            self.abort()

    def _open(self, item: Composed) -> _Writer:
        plan = self._plan.sized(item)
        encoder = plan.encoder()
        self.encoder = encoder.described
        self._file = PendingFile(plan.target, overwrite=plan.overwrite)
        return _Writer(self._file.path, plan, encoder)


def partial_path(target: Path) -> Path:
    """A free name for what an interrupted run leaves: clip.mask.mp4 becomes clip.mask.partial.mp4."""
    numbers = itertools.chain([""], (f".{n}" for n in itertools.count(2)))
    names = (f"{target.stem}{number}.partial{target.suffix}" for number in numbers)
    return next(path for name in names if not (path := target.with_name(name)).exists())


class _Writer:
    """An open output: frames in, packets in time order out."""

    def __init__(self, path: Path, plan: OutputPlan, encoder: Encoder) -> None:
        self._muxer = Muxer(path, plan, encoder)
        self._frames = FrameEncoder(self._muxer.context, encoder, plan.traits)
        self.frames = 0

    @property
    def warnings(self) -> list[str]:
        return self._muxer.warnings

    def write(self, item: Composed) -> None:
        for packet in self._frames.encode(item):
            self._muxer.mux(packet)
        self.frames += 1

    def flush(self, *, to_the_end: bool) -> None:
        for packet in self._frames.flush():
            self._muxer.mux(packet)
        self._muxer.finish(to_the_end=to_the_end)

    def close(self) -> None:
        self._muxer.close()


class FrameEncoder:
    """Composed frames to packets of one encoder, each with its frame's time and duration."""

    def __init__(self, context: VideoCodecContext, encoder: Encoder, traits: VideoTraits) -> None:
        """`context`: set up, not yet used."""
        self._context = context
        self._pixels = encoder.pixels
        self._time_base = traits.time_base
        self._range = _FULL if encoded_full_range(encoder, traits) else _LIMITED
        self._matrix = swscale_matrix(traits.colour)
        self._durations: dict[int, int] = {}

    def encode(self, item: Composed) -> Iterator[Packet[Any]]:
        """The packets that are ready after this frame."""
        frame = self._picture(item)
        frame.pts, frame.time_base = item.frame.pts, self._time_base
        self._durations[item.frame.pts] = item.frame.duration
        return self._packets(frame)

    def flush(self) -> Iterator[Packet[Any]]:
        """The packets that are left."""
        return self._packets(None)

    def _packets(self, frame: av.VideoFrame | None) -> Iterator[Packet[Any]]:
        for packet in self._context.encode(frame):
            if packet.pts is not None:
                packet.duration = self._durations.pop(packet.pts, 0) or packet.duration
            packet.time_base = self._time_base
            yield packet

    def _picture(self, item: Composed) -> av.VideoFrame:
        if item.pixels.ndim == 2 and self._pixels in ("gray", "yuv420p"):
            return _grey_frame(item.pixels, self._pixels, full_range=self._range == _FULL)
        image_HWC = np.repeat(item.pixels[..., None], 3, axis=2) if item.pixels.ndim == 2 else item.pixels
        return self._colour_frame(image_HWC, item.alpha_HW)

    def _colour_frame(self, image_HWC: UInt8, alpha_HW: UInt8 | None) -> av.VideoFrame:
        import av

        if alpha_HW is None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
        else:
            frame = av.VideoFrame.from_ndarray(np.dstack([image_HWC, alpha_HW]), format="rgba")
        if self._pixels.startswith("bgr"):
            return frame.reformat(format=self._pixels, threads=1)
        return frame.reformat(format=self._pixels, dst_colorspace=self._matrix, dst_color_range=self._range, threads=1)


class Muxer:
    """An open output container: video packets in, each preceded by the sound that belongs before it.

    Attributes:
        context: The opened video encoder.
        warnings: What did not fit into the container.
    """

    def __init__(self, path: Path, plan: OutputPlan, encoder: Encoder) -> None:
        """Open the container and its encoder.

        Raises:
            MediaError: The encoder does not write this size.
        """
        import av

        self.warnings: list[str] = []
        self._traits = plan.traits
        self._origin: int | None = None if plan.traits.part else 0
        self._end = Fraction(0)
        suffix = plan.target.suffix.lower()
        in_milliseconds = suffix in (".mkv", ".webm")
        side = plan.open_side()
        try:
            options = {} if in_milliseconds else _timescales(plan.traits, side)
            self._container = av.open(f"file:{path}", "w", format=FORMATS[suffix], options=options)
        except BaseException:
            side.close()
            raise
        self._container.flags |= _BITEXACT  # no random numbers: the same input gives the same bytes
        stream = self._container.add_stream(encoder.library, rate=plan.traits.rate)
        self._stream = cast("VideoStream", stream)
        self.context = self._stream.codec_context
        set_up(self.context, encoder, plan.traits)
        self._copier = PacketCopier(side, self._container, suffix)
        self.warnings += copy_tags(
            side, plan.traits.stream, self._container, self._stream, suffix, whole=plan.options.span.start is None
        )
        self._start(encoder, plan)
        if in_milliseconds and 1000 % plan.traits.time_base.denominator:
            self.warnings.append(f"{suffix} keeps times to the millisecond; .mp4 and .mov keep them exactly")

    def _start(self, encoder: Encoder, plan: OutputPlan) -> None:
        from av.error import FFmpegError

        try:
            self.context.open()
        except (FFmpegError, ValueError) as error:
            self.close()
            raise refused(encoder, plan.target, plan.traits, av_detail(error)) from error

    def mux(self, packet: Packet[Any]) -> None:
        """Write one packet, after the sound before it."""
        if packet.pts is not None:
            if self._origin is None:
                self._origin = packet.pts
            packet.pts -= self._origin
            packet.dts = packet.pts if packet.dts is None else packet.dts - self._origin
            start = packet.pts * self._traits.time_base
            self._end = start + (packet.duration or 0) * self._traits.time_base
            self._copy_until(float(start))
        packet.stream = self._stream
        self._container.mux(packet)

    def finish(self, *, to_the_end: bool) -> None:
        """Write what is left of the sound: all of it, or up to the last frame's end."""
        self._copy_until(math.inf if to_the_end else float(self._end))

    def _copy_until(self, seconds: float) -> None:
        origin = (self._origin or 0) * self._traits.time_base if self._traits.part else Fraction(0)
        self._container.mux(list(self._copier.until(seconds, origin)))

    def close(self) -> None:
        """Write the index and close; a second call does nothing."""
        self._copier.close()
        self._container.close()
        self.warnings += [text for text in self._copier.warnings if text not in self.warnings]


@contextmanager
def av_errors(target: Path) -> Iterator[None]:
    """FFmpeg's and the system's errors as ours."""
    from av.error import FFmpegError

    try:
        yield
    except MediaError:
        raise
    except (FFmpegError, OSError) as error:
        raise MediaError(f"{target}: {av_detail(error)}") from error


def _timescales(traits: VideoTraits, side: Side) -> dict[str, str]:
    """Clocks of an .mp4 that hold the times of the source exactly, starts of streams included."""
    video = traits.time_base.denominator
    movie = math.lcm(video, *(stream.time_base.denominator for stream in side.streams if stream.time_base))
    return {
        "video_track_timescale": str(video),
        "movie_timescale": str(movie if movie <= _MAX_TIMESCALE else video),
        "movflags": "+faststart",
    }


def _grey_frame(mask_HW: UInt8, pixels: str, *, full_range: bool) -> av.VideoFrame:
    """A mask as luma without colour; in video range 0..255 becomes 16..235, which every player undoes."""
    import av
    import cv2

    height, width = mask_HW.shape
    frame = av.VideoFrame(width, height, pixels)
    luma, *chroma = frame.planes
    rows = np.frombuffer(memoryview(luma), np.uint8).reshape(-1, luma.line_size)[:height, :width]
    rows[:] = mask_HW if full_range else cv2.LUT(mask_HW, _FROM_FULL_RANGE).reshape(height, width)
    for plane in itertools.islice(chroma, 2):
        np.frombuffer(memoryview(plane), np.uint8)[:] = 128
    return frame
