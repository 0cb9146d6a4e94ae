"""Video writer: encode frames at their own times, copy other streams.

    sink = VideoSink(OutputPlan(target=Path("clip.mask.mp4"), info=source.info, kind=OutputKind()))

The file appears under its name when it is complete; a run that fails leaves nothing. One that is interrupted, or whose
container refuses a packet midway, leaves what was done so far, playable, under a name that says so.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from basnet_runtime.frame import ResultFrame
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.open import av_detail
from basnet_runtime.media.video.options import Span, VideoOptions
from basnet_runtime.media.video.stream_info import VideoStreamInfo
from basnet_runtime.media.video.write.container import FORMATS, named
from basnet_runtime.media.video.write.encoder import (
    FULL_RANGE,
    LIMITED_RANGE,
    Encoder,
    check_rate,
    choose_encoder,
    codec_for,
    encoded_full_range,
    open_encoder,
    refused,
    set_up,
    swscale_matrix,
)
from basnet_runtime.media.video.write.passthrough import FilePassthrough, PacketCopier, PassthroughStreams, copy_tags
from basnet_runtime.pipeline.timing import LibraryThreads
from basnet_torch.arrays import UInt8
from basnet_torch.errors import MediaError
from basnet_torch.files import PendingFile

if TYPE_CHECKING:
    import av
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

__all__ = ["ContainerRefused", "FrameEncoder", "Muxer", "OutputPlan", "VideoSink", "av_errors", "partial_path"]

_BITEXACT = 0x0400  # AVFMT_FLAG_BITEXACT
_MAX_TIMESCALE = 1_000_000_000
_MAX_DURATION = 1 << 31  # of a packet in .mp4 and .mov, ticks
_OF_THE_PACKET = (errno.EINVAL, errno.ERANGE, errno.EPERM, errno.ENOSYS, None)
_FROM_FULL_RANGE = np.rint(16 + np.arange(256) * (219 / 255)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """All that decides how one output video is written.

    Attributes:
        target: Its name.
        info: Of the source.
        kind: What is in it.
        options: The user's choices.
        passthrough: Opens what is copied along.
        whole: Whether the source was taken to its own end, known when the last frame is through: its sound then runs on
            to its own end too.
        overwrite: An existing file may be replaced.
    """

    target: Path
    info: VideoStreamInfo
    kind: OutputKind
    options: VideoOptions = field(default_factory=VideoOptions)
    passthrough: Callable[[], PassthroughStreams] | None = None
    whole: Callable[[], bool] = lambda: True
    overwrite: bool = False

    def open_passthrough(self) -> PassthroughStreams:
        """What is copied along, open."""
        passthrough = (
            FilePassthrough(Path(self.info.source), self.info.stream)
            if self.passthrough is None
            else self.passthrough()
        )
        wanted = {"audio": self.options.sound, "subtitle": self.options.subtitles}
        passthrough.streams = [stream for stream in passthrough.streams if wanted[stream.type]]
        return passthrough

    def encoder(self) -> Encoder:
        """The encoder for frames of the size in `info`."""
        codec = codec_for(self.target, self.kind, self.options)
        check_rate(self.target, codec, self.info.rate)
        return choose_encoder(codec, self.target.suffix.lower(), self.kind, self.info, self.options)

    def sized(self, item: ResultFrame) -> OutputPlan:
        """Adapt the plan to the results' size, twice as wide side by side."""
        height, width = item.pixels.shape[:2]
        return replace(self, info=replace(self.info, height=height, width=width))


class VideoSink:
    """One output video; its encoder opens with the first result.

    Attributes:
        warnings: For the user, about the output; complete after `finish`.
        encoder: Which encoder runs, and on what; known after the first frame.
        kept: Where an interrupted run left what it had done, or None.
    """

    def __init__(self, plan: OutputPlan, *, endless: bool = False) -> None:
        """The file is created by the first `write`; `endless` sources end by interrupt."""
        self.warnings: list[str] = []
        self.encoder = ""
        self.codec_threads = LibraryThreads()
        self.kept: Path | None = None
        self._plan = plan
        self._endless = endless
        self._frames = 0
        self._file: PendingFile | None = None
        self._muxer: Muxer | None = None

    def write(self, item: ResultFrame) -> None:
        """Encode one result at its frame's time.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        with self._salvaging(), av_errors(self._plan.target):
            if self._muxer is None:
                with self.codec_threads.adopt():
                    plan = self._plan.sized(item)
                    encoder = plan.encoder()
                    self.encoder = encoder.described
                    self._file = PendingFile(plan.target, overwrite=plan.overwrite)
                    self._muxer = Muxer(self._file.path, plan, encoder)
                    self._encoder = FrameEncoder(self._muxer.context, encoder, plan.info)
                    self._mux(self._encoder.encode(item))
            else:
                self._mux(self._encoder.encode(item))
            self._frames += 1

    def _mux(self, packets: Iterable[Packet[Any]]) -> None:
        if self._muxer is not None:
            for packet in packets:
                self._muxer.mux(packet)

    def finish(self) -> None:
        """Flush, copy what is left of the audio, and give the file its name.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        if self._muxer is None or self._file is None:
            raise MediaError(f"{self._plan.target}: there was no frame to write")
        with self._salvaging(), av_errors(self._plan.target):
            self._mux(self._encoder.flush())
            self._muxer.finish(to_the_end=self._plan.whole())
            self.codec_threads.collect()
            self._muxer.close()
        self.warnings += self._muxer.warnings
        self._file.commit()

    def abort(self) -> None:
        """Remove what was written so far."""
        if self._muxer is not None:
            with suppress(Exception):  # the trailer of a broken file, which is removed anyway
                self._muxer.close()
        if self._file is not None:
            self._file.discard()

    def interrupt(self) -> None:
        """Keep what was written so far as a file that plays, under the name of `kept`."""
        if self._muxer is None or self._file is None or not self._frames:
            return
        try:
            with av_errors(self._plan.target):
                self._mux(self._encoder.flush())
                self._muxer.finish(to_the_end=False)
                self._muxer.close()
            self.warnings += self._muxer.warnings
            kept = self._plan.target if self._endless else partial_path(self._plan.target)
            self._file.commit(kept)
            self.kept = kept
        finally:
            self.abort()

    @contextmanager
    def _salvaging(self) -> Iterator[None]:
        """Keep what the container took before it refused a packet; hours of work may be in it."""
        try:
            yield
        except ContainerRefused as error:
            if self._muxer is None or self._file is None or not self._frames:
                raise
            with suppress(Exception):  # the index of what it took; without it nothing is worth keeping
                self._muxer.close()
                self._file.commit(partial_path(self._plan.target))
                self.kept = self._file.target
            if self.kept is None:
                raise
            raise MediaError(f"{error}; {self.kept} holds what was done until then") from error


def partial_path(target: Path) -> Path:
    """Free name for an interrupted run's result, such as clip.mask.partial.mp4."""
    numbers = itertools.chain([""], (f".{n}" for n in itertools.count(2)))
    names = (f"{target.stem}{number}.partial{target.suffix}" for number in numbers)
    return next(path for name in names if not (path := target.with_name(name)).exists())


class FrameEncoder:
    """Encode frames to packets, each with its frame's time and duration."""

    def __init__(self, context: VideoCodecContext, encoder: Encoder, info: VideoStreamInfo) -> None:
        """`context`: set up, not yet used."""
        self._context = context
        self._pixels = encoder.pixels
        self._time_base = info.time_base
        self._range = FULL_RANGE if encoded_full_range(encoder, info) else LIMITED_RANGE
        self._matrix = swscale_matrix(info.color)
        self._durations: dict[int, int] = {}

    def encode(self, item: ResultFrame) -> Iterator[Packet[Any]]:
        """The packets that are ready after this frame."""
        if item.pixels.ndim == 2 and self._pixels in ("gray", "yuv420p"):
            frame = _gray_frame(item.pixels, self._pixels, full_range=self._range == FULL_RANGE)
        else:
            image_HWC = np.repeat(item.pixels[..., None], 3, axis=2) if item.pixels.ndim == 2 else item.pixels
            frame = self._color_frame(image_HWC, item.alpha_HW)
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

    def _color_frame(self, image_HWC: UInt8, alpha_HW: UInt8 | None) -> av.VideoFrame:
        import av

        if alpha_HW is None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
        else:
            frame = av.VideoFrame.from_ndarray(np.dstack([image_HWC, alpha_HW]), format="rgba")
        if self._pixels.startswith("bgr"):
            return frame.reformat(format=self._pixels, threads=1)
        frame = frame.reformat(format=self._pixels, dst_colorspace=self._matrix, dst_color_range=self._range, threads=1)
        if alpha_HW is not None:
            _fill_alpha(frame, alpha_HW)  # swscale's own conversion is one too high in half of its values
        return frame


class ContainerRefused(MediaError):
    """A container does not take a packet."""


class Muxer:
    """Open output container: interleaves video packets and copied streams.

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
        from av.error import FFmpegError

        self.warnings: list[str] = []
        self._plan = plan
        self._info = plan.info
        self._origin: Fraction | None = None
        self._end = Fraction(0)
        self._last: dict[int, int] = {}  # decoding time of the last packet, by stream
        self._dropped: Counter[str] = Counter()
        self._damaged: Counter[str] = Counter()
        suffix = plan.target.suffix.lower()
        self._in_milliseconds = suffix in (".mkv", ".webm")
        passthrough = plan.open_passthrough()
        try:
            options = {} if self._in_milliseconds else _timescales(plan.info, passthrough)
            self._container = av.open(f"file:{path}", "w", format=FORMATS[suffix], options=options)
        except BaseException:
            passthrough.close()
            raise
        self._container.flags |= _BITEXACT  # no random numbers: the same input gives the same bytes
        stream = self._container.add_stream(encoder.library, rate=plan.info.rate)
        self._stream = cast("VideoStream", stream)
        self.context = self._stream.codec_context
        set_up(self.context, encoder, plan.info)
        self._copier = PacketCopier(passthrough, self._container, suffix, whole=plan.options.span == Span())
        self.warnings += copy_tags(passthrough, plan.info.stream, self._container, self._stream, suffix, plan.options)
        try:
            open_encoder(self.context)
        except (FFmpegError, ValueError) as error:
            self.close()
            raise refused(encoder, plan.target, plan.info, av_detail(error)) from error
        if self._in_milliseconds and 1000 % plan.info.time_base.denominator:
            self.warnings.append(f"{suffix} keeps times to the millisecond; .mp4 and .mov keep them exactly")

    def mux(self, packet: Packet[Any]) -> None:
        """Write one packet, after the sound before it.

        Raises:
            ContainerRefused: The container does not take it.
        """
        if self._origin is None:
            # The source's time that becomes 0: where a part begins, else where the first of its streams does.
            starts = [self._info.start, self._copier.start]
            first = (packet.pts or 0) * packet.time_base
            self._origin = first if self._info.part else min(start for start in starts if start is not None)
        shift, shown = round(self._origin / packet.time_base), packet.pts or 0
        packet.pts, packet.dts = shown - shift, (shown if packet.dts is None else packet.dts) - shift
        start = packet.pts * self._info.time_base
        self._end = start + (packet.duration or 0) * self._info.time_base
        self._copy_until(float(start))
        packet.stream = self._stream
        self._put(packet)

    def finish(self, *, to_the_end: bool) -> None:
        """Write what is left of the sound: all of it, or up to the last frame's end."""
        self._copy_until(math.inf if to_the_end else float(self._end))

    def _copy_until(self, seconds: float) -> None:
        for packet in self._copier.until(seconds, self._origin or Fraction(0), part=self._info.part):
            if not self._before_zero(packet):
                self._put(packet)

    def _before_zero(self, packet: Packet[Any]) -> bool:
        """Whether a packet lies before 0, as the first one of AAC does, and is left out.

        Matroska has no times below 0: its muxer would move everything instead, pictures too.
        """
        if (packet.pts or 0) >= 0 or self._copier.may_be_below_zero(packet):
            return False
        if 2 * (packet.pts or 0) + (packet.duration or 0) < 0:
            self._dropped[named(packet.stream)] += 1
            return True
        packet.pts, packet.dts = 0, max(0, packet.dts or 0)
        return False

    def _put(self, packet: Packet[Any]) -> None:
        """Hand a packet over in the container's own ticks, in which decoding times rise and come before showing."""
        from av.error import FFmpegError, InvalidDataError

        self._container.start_encoding()
        stream = packet.stream
        ticks = Fraction(packet.time_base / (stream.time_base or packet.time_base))
        index, pts, dts = stream.index, _in_ticks(packet.pts or 0, ticks), _in_ticks(packet.dts or 0, ticks)
        dts = max(dts, self._last.get(index, dts - 1) + 1)
        self._last[index] = dts
        packet.pts, packet.dts = max(pts, dts), dts
        duration = _in_ticks(packet.duration or 0, ticks)
        packet.duration = duration if duration < _MAX_DURATION or self._in_milliseconds else 0
        packet.time_base = stream.time_base or packet.time_base
        try:
            self._container.mux_one(packet)
        except InvalidDataError as error:
            if stream is self._stream:
                raise self._refusal(packet, error) from error
            self._damaged[named(stream)] += 1  # the muxer looks into what it repacks, such as AAC of MPEG-TS
        except (FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _OF_THE_PACKET:
                raise
            raise self._refusal(packet, error) from error

    def _refusal(self, packet: Packet[Any], error: Exception) -> ContainerRefused:
        target, seconds = self._plan.target, float((packet.pts or 0) * packet.time_base)
        return ContainerRefused(
            f"{target}: {target.suffix} refuses a packet of the {named(packet.stream)} stream at {seconds:.3f} s "
            f"({av_detail(error)})"
        )

    def close(self) -> None:
        """Write the index and close; a second call does nothing."""
        self._copier.close()
        self._container.close()
        for name, count in self._dropped.items():
            suffix = self._plan.target.suffix
            self.warnings.append(
                f"{name} packets before the first picture are left out: {count}; {suffix} has no times below 0"
            )
        for name, count in self._damaged.items():
            self.warnings.append(f"damaged {name} packets are left out: {count}")
        self._dropped.clear()
        self._damaged.clear()
        self.warnings += [text for text in self._copier.warnings if text not in self.warnings]


def _in_ticks(value: int, ticks: Fraction) -> int:
    """Times a ratio, to the nearest; halves go away from 0, as in FFmpeg."""
    size = (2 * abs(value) * ticks.numerator + ticks.denominator) // (2 * ticks.denominator)
    return size if value >= 0 else -size


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


def _timescales(info: VideoStreamInfo, passthrough: PassthroughStreams) -> dict[str, str]:
    """Clocks of an .mp4 that hold the times of the source exactly, starts of streams included."""
    video = info.time_base.denominator
    movie = math.lcm(video, *(stream.time_base.denominator for stream in passthrough.streams if stream.time_base))
    return {
        "video_track_timescale": str(video),
        "movie_timescale": str(movie if movie <= _MAX_TIMESCALE else video),
        "movflags": "+faststart",
    }


def _gray_frame(mask_HW: UInt8, pixels: str, *, full_range: bool) -> av.VideoFrame:
    """A mask as luma without color; in video range 0..255 becomes 16..235, which every player undoes."""
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


# Of the ten bits, those from which readers get the eight back, whether they round, cut off or scale.
_TEN_BITS = (4 * np.arange(256) + (np.arange(256) >= 43)).astype("<u2")
_TEN_BITS[255] = 1023


def _fill_alpha(frame: av.VideoFrame, alpha_HW: UInt8) -> None:
    """Write the transparency into its own plane, where the pixel format has one."""
    components = frame.format.components
    alpha = next(component for component in components if component.is_alpha)
    if sum(component.plane == alpha.plane for component in components) > 1:
        return
    plane = frame.planes[alpha.plane]
    values = alpha_HW if alpha.bits == 8 else _TEN_BITS[alpha_HW]
    rows = np.frombuffer(memoryview(plane), values.dtype).reshape(-1, plane.line_size // values.itemsize)
    rows[: alpha_HW.shape[0], : alpha_HW.shape[1]] = values
