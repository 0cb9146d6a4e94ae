"""Video reader: upright RGB frames, each with its presentation time.

    with VideoSource(Path("clip.mp4")) as source:
        for frame in source.frames(): ...

PyAV (FFmpeg) decodes. The rotation stored in a file is applied to the pixels, so that the network and the output see
what a viewer sees. A damaged or truncated file, or one that changes its size on the way, gives what comes before, and
`warnings` says what is missing.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from basnet_runtime.frame import Frame
from basnet_runtime.kinds import HwAccel
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.media.video.open import av_detail, hardware_decoding, is_address, is_live, open_input
from basnet_runtime.media.video.options import Span
from basnet_runtime.media.video.pixels import FrameReader
from basnet_runtime.media.video.promised_length import promised_length
from basnet_runtime.media.video.stream_info import Color, VideoStreamInfo, nearest_matrix
from basnet_runtime.media.video.times import Timeline, counted_times, frame_rate, watched_streams
from basnet_runtime.media.video.tracks import chosen_track
from basnet_runtime.media.video.write.passthrough import FilePassthrough, LivePassthrough, PassthroughStreams
from basnet_runtime.pipeline.queues import ByteBudget
from basnet_runtime.pipeline.timing import LibraryThreads
from basnet_torch.errors import BackendUnavailable, MediaError
from basnet_torch.files import Closing

if TYPE_CHECKING:
    import av
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

__all__ = ["MAX_FRAME_PIXELS", "VideoSource"]

MAX_FRAME_PIXELS = 64_000_000  # nearly two 8K pictures; a decoder may hold seventeen frames at once
_MAX_DECODE_THREADS = 4
_SEEK_FROM_SECONDS = 10
_LIVE_FRAMES = 4
_LATE_SECONDS = 1.0
_FULL_RANGE = 2
_ROUNDING_SECONDS = 0.002
_FALLS_TOLD = 3
_CLOCK_MAY_FALL = 0x0200  # AVFMT_TS_DISCONT: a place cannot be found by its time
_HDR = {16: "PQ", 18: "HLG"}
# Of ATSC (A/53) as H.264, HEVC and AV1 carry them and as MPEG-2 does, and of DVDs.
_CAPTIONS = re.compile(rb"(?:\xb5\x00\x31|\x00\x00\x01\xb2)GA94\x03|\x00\x00\x01\xb2CC\x01\xf8")


class VideoSource(Closing):
    """Frames of one video stream of a file or network stream; a context manager.

    Attributes:
        info: What the output must keep.
        warnings: What a user should know about it; complete once `frames` has ended.
        decoder: Which decoder runs, and on what.
        codec_threads: The decoder's.
        whole: Whether the frames end where the source does: what else it holds then belongs to the result too.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        span: Span | None = None,
        skip: int = 0,
        passed_over: Callable[[], None] = lambda: None,
        hwaccel: HwAccel = "none",
        max_pixels: int = MAX_FRAME_PIXELS,
        track: int | None = None,
    ) -> None:
        """Open and decode the first frame: only it tells any file's size and rotation.

        Args:
            source: A file or an address.
            span: The part to read.
            skip: Frames of that part that an earlier run has done; they are decoded, for exactness, and passed over.
            passed_over: Called after each of them.
            hwaccel: Where decoding runs.
            max_pixels: Larger frames are refused before they are decoded.
            track: Which video track, counted from 1; None takes the default one.

        Raises:
            MediaError: Not a video, or nothing of it can be decoded.
            BackendUnavailable: The asked hardware is not there.
        """
        self.source = source
        self.warnings: list[str] = []
        self.whole = True
        self._span = span or Span()
        self._skip = skip
        self._passed_over = passed_over
        self._max_pixels = min(max_pixels, MAX_FRAME_PIXELS)
        self.codec_threads = LibraryThreads()
        self._track = track
        self._hwaccel = hardware_decoding(hwaccel)
        self._hwaccel_may_fall_back = hwaccel == "auto"
        self._damaged = self._decoded_count = self._shown = self._retimed = self._dropped = self._interlaced = 0
        self._corrupt = self._unreadable = self._filled = 0
        self._last = self._longest = self._duration = 0
        self._captioned = False
        self._broke = ""
        self._changed = ""
        self._sought = False
        self._passthrough: LivePassthrough | None = None
        self._container = open_input(source, hwaccel=self._hwaccel)
        try:
            first = self._first_frame()
        except BaseException:
            self.close()
            raise
        self._first: av.VideoFrame | None = first
        self._format = (first.width, first.height)
        self._reader = FrameReader(first, source, self._stream)
        self._clear = self._reader.clear
        decoder = self._alpha_decoder or self._stream.codec_context
        on_gpu = self._hwaccel is not None and _from_hardware(first)
        self.decoder = f"{decoder.name}, {'CUDA' if on_gpu else 'software'}"
        self.info = self._info_of(first)
        self._origin = first.pts or 0
        self._begun = time.monotonic()
        self._tell_of(first)
        self._seek_near_start()

    def _first_frame(self) -> av.VideoFrame:
        self._stream = self._prepared_stream()
        self._alpha_decoder = _alpha_decoder(self._stream)
        self._promised = promised_length(self._container, self._stream)
        self._begin_reading()
        if is_address(self.source):
            self._passthrough = LivePassthrough(self._container)
        self._decoded = self._decode()
        with self.codec_threads.adopt():
            first = next(self._decoded, None)
        asked = self._hwaccel is not None and not self._hwaccel_may_fall_back
        if asked and (first is None or not _from_hardware(first)):
            name = self._stream.codec_context.codec.canonical_name
            raise BackendUnavailable(
                f"{self.source}: --hwaccel cuda: the device does not decode this {name} video"
                f"{self._broke and ' (' + self._broke + ')'}; leave it out to decode in software"
            )
        if first is None:
            raise MediaError(f"{self.source}: no frame can be decoded{self._broke and ': ' + self._broke}")
        if first.width * first.height > self._max_pixels:
            raise _too_large(self.source, first.width, first.height, self._max_pixels)
        return first

    def _prepared_stream(self) -> VideoStream:
        from av.codec.context import Flags

        stream = chosen_track(self._container, self.source, self._track)
        context = stream.codec_context
        if context.width * context.height > self._max_pixels:
            raise _too_large(self.source, context.width, context.height, self._max_pixels)
        context.options = {"max_pixels": str(self._max_pixels)}  # a later header may say otherwise than the first
        if not is_live(self.source):
            context.flags |= Flags.output_corrupt
        if not context.is_hwaccel:
            stream.thread_type = "AUTO"
            context.thread_count = min(_MAX_DECODE_THREADS, allowed_threads() + 1)
        return stream

    def _begin_reading(self) -> None:
        """Forget the clock of what was read before: the next packet is the first, or the first after a jump."""
        self._timeline = Timeline(self._container)
        self._counted = counted_times(self._container, self._stream)

    def _info_of(self, first: av.VideoFrame) -> VideoStreamInfo:
        stream, reader = self._stream, self._reader
        height, width, aspect = reader.height, reader.width, reader.pixel_aspect
        if reader.upright.transpose:
            height, width, aspect = width, height, 1 / aspect
        rate = frame_rate(stream)
        time_base = Fraction(stream.time_base or 1 / rate)
        return VideoStreamInfo(
            source=self.source,
            height=height,
            width=width,
            time_base=time_base,
            rate=Fraction(stream.guessed_rate or rate) if first.pts is None else rate,
            pixel_aspect=aspect,
            color=Color(
                matrix=nearest_matrix(int(first.colorspace), int(first.color_primaries)),
                primaries=int(first.color_primaries),
                transfer=int(first.color_trc),
                full_range=int(first.color_range) == _FULL_RANGE and not first.format.is_rgb,
            ),
            frames=self._promised.frames,
            seconds=self._promised.seconds or float(self._container.duration or 0) / 1e6,
            start=(first.pts or 0) * time_base,
            stream=stream.index,
            part=self._span.start is not None or (is_address(self.source) and not self._container.duration),
        )

    def _tell_of(self, first: av.VideoFrame) -> None:
        bits = max((component.bits for component in first.format.components), default=8)
        if bits > 8:
            self.warnings.append(f"has {bits} bits a sample; it is worked on and written with 8")
        if curve := _HDR.get(self.info.color.transfer):
            self.warnings.append(f"is HDR ({curve}); masks are found on its samples as they are stored")
        if (matrix := int(first.colorspace)) != self.info.color.matrix:
            self.warnings.append(
                f"has color matrix {matrix} (H.273), which cannot be converted; it is read as matrix "
                f"{self.info.color.matrix}, the nearest one, and its colors are not exact"
            )

    def _seek_near_start(self) -> None:
        """Go to the key frame before a late start; back to the beginning where the file cannot do that exactly."""
        start, end = self._span.start, self._span.end
        if start is None or start.seconds is None or start.seconds < _SEEK_FROM_SECONDS or is_address(self.source):
            return
        if end is not None and end.frame is not None:
            return  # frames are counted from the beginning
        if self._counted is not None or self._container.format.flags & _CLOCK_MAY_FALL:
            return
        from av.error import FFmpegError

        target = self._origin + round(start.seconds / self.info.time_base)
        try:
            self._container.seek(target, stream=self._stream, backward=True)
            self._begin_reading()
            self._decoded = self._decode()
            decoded = next(self._decoded, None)
        except (FFmpegError, OSError):
            decoded = None
        if decoded is not None and decoded.pts is not None and decoded.pts <= target:
            self._unreadable = 0  # what they lack lies before the place, not before the file
            self._first, self._sought, self._last = decoded, True, decoded.pts - 1
            return
        self._container.close()
        self._container = open_input(self.source, hwaccel=self._hwaccel)
        self._damaged = self._corrupt = self._unreadable = 0
        self._broke = ""
        self._first = self._first_frame()

    @property
    def broken(self) -> bool:
        """Whether frames are missing: damaged, truncated, or of another size."""
        return bool(self._damaged or self._broke or self._corrupt or self._share() or self._changed)

    @property
    def begins(self) -> Fraction:
        """Time of the first picture or sound on the source's clock."""
        begins = self.info.start
        for stream in self._container.streams.audio:
            if stream.start_time is not None and stream.time_base is not None:
                begins = min(begins, stream.start_time * stream.time_base)
        return begins

    @property
    def passthrough(self) -> PassthroughStreams:
        """Where the sound and subtitles of this source come from."""
        return self._passthrough or FilePassthrough(Path(self.source), self._stream.index)

    def frames(self, budget: ByteBudget | None = None) -> Iterator[Frame]:
        """Every frame in order of presentation, times strictly rising; call once."""
        nbytes = self.info.height * self.info.width * (4 if self._clear else 3)
        first, self._first = self._first, None
        decoded = itertools.chain([] if first is None else [first], self._decoded)
        del first
        while True:
            if budget is not None:
                budget.wait(0 if is_live(self.source) else nbytes)
            frame = self._next(decoded, budget, nbytes)
            if frame is None:
                break
            yield frame
        self.codec_threads.collect()
        self._conclude()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames as decoded, damaged ones too, up to the end or the break of the file."""
        from av.error import FFmpegError

        counted, begun, first = self._counted, False, True
        key: int | None = None  # when the key frame is shown with which the file begins
        for packet in self._packets():
            if first:
                key, first = packet.pts if packet.is_keyframe else None, False
            # Not asked of the frame: looking at the side data of one ties it into a cycle, so that it stays in memory.
            self._captioned = self._captioned or (packet.size > 0 and _CAPTIONS.search(memoryview(packet)) is not None)
            if counted is not None:
                counted.put(packet)
            try:
                frames = packet.decode() if self._alpha_decoder is None else self._alpha_decoder.decode(packet)
            except FFmpegError as error:
                self._damaged += 1
                self._broke = self._broke or av_detail(error)
                if counted is not None:
                    counted.lost(packet)
                continue
            for frame in frames:
                if counted is not None:
                    counted.stamp(frame)
                if frame.is_corrupt and not begun and (key is None or (frame.pts or 0) < key):
                    self._unreadable += 1  # what it was made from lies before the file's beginning
                    continue
                begun = True
                yield frame

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """The video's packets, on one clock; what comes between them goes to a stream's passthrough."""
        from av.error import FFmpegError

        if self._passthrough is None:
            streams = watched_streams(self._container, self._stream)
            if self._promised.of_all_streams:
                streams += [*self._container.streams.subtitles, *self._container.streams.data]
        else:
            streams = [self._stream, *self._passthrough.streams]
        packets, timeline = self._container.demux(*streams), self._timeline
        try:
            for packet in packets:
                timeline.place(packet)
                self._filled = max(self._filled, (packet.pos or 0) + packet.size)
                if packet.stream.index == self._stream.index:  # `stream_index` of a closing packet is 0
                    yield cast("Packet[VideoStream]", packet)
                elif self._passthrough is not None:
                    self._passthrough.put(packet)
        except (FFmpegError, OSError) as error:
            self._broke = av_detail(error)

    def _next(self, decoded: Iterator[av.VideoFrame], budget: ByteBudget | None, nbytes: int) -> Frame | None:
        """The next frame that is wanted, or None after the last one."""

        def is_late(seconds: Fraction) -> bool:
            """Whether a live frame comes long after its time."""
            return is_live(self.source) and time.monotonic() - self._begun - float(seconds) > _LATE_SECONDS

        for raw in decoded:
            if (raw.width, raw.height) != self._format:
                was, now = (f"{w}x{h}" for w, h in (self._format, (raw.width, raw.height)))
                self._changed = f"changes from {was} to {now} at frame {self._decoded_count}; it is done up to there"
                self.whole = False
                return None
            index, pts = self._decoded_count, self._time_of(raw)
            self._decoded_count += 1
            seconds = (pts - self._origin) * self.info.time_base
            if self._span.end is not None and self._span.end.reached(index, seconds):
                self.whole = False
                return None
            if self._span.start is not None and not self._span.start.reached(index, seconds):
                continue
            self._interlaced += raw.interlaced_frame
            self._corrupt += raw.is_corrupt
            if self._shown < self._skip:
                self._shown += 1
                self._passed_over()
            elif budget is not None and is_late(seconds) and budget.used > _LIVE_FRAMES * nbytes:
                self._dropped += 1  # it would wait ever longer; the next one is nearer to now
            else:
                image_HWC, alpha_HW = self._reader.read(raw)
                duration, shown = raw.duration or 0, self._shown
                self._shown += 1
                return Frame(image_HWC=image_HWC, alpha_HW=alpha_HW, index=shown, pts=pts, duration=duration)
        return None

    def _time_of(self, raw: av.VideoFrame) -> int:
        """The frame's own time; one step after the last where it has none or runs backwards."""
        first, before = self._decoded_count == 0 and not self._sought, self._last
        if raw.pts is None:
            step = max(1, round(1 / (self.info.rate * self.info.time_base)))
            self._last = 0 if first else self._last + step
        elif not first and raw.pts <= self._last:
            self._retimed += 1
            self._last += 1
        else:
            self._last = raw.pts
        self._duration = raw.duration or 0
        self._longest = max(self._longest, self._duration, 0 if first else self._last - before)
        return self._last

    def _share(self) -> str:
        """How much of what the file promises could be read; empty where it is all, or where only a part was asked."""
        if not self.whole or self._sought or is_live(self.source):
            return ""
        promised, seen = self._promised, self._decoded_count
        if promised.frames > seen:
            return f"{seen} of {promised.frames} frames"
        if promised.nbytes > 0 and promised.nbytes != self._filled:
            return f"{seen} frames"
        time_base = self.info.time_base
        end = self._timeline.reached if promised.of_all_streams else float((self._last + self._duration) * time_base)
        # The last picture may be shown as long as the longest one before it.
        slack = max(float(self._longest * time_base), 1.5 / float(self.info.rate)) + _ROUNDING_SECONDS
        if promised.seconds and promised.seconds > end + slack:  # a clock that has wrapped may end below 0
            return f"{seen} frames, {end:.2f} of {promised.seconds:.2f} seconds,"
        return ""

    def _conclude(self) -> None:
        share = self._share()
        if is_live(self.source):
            if self._damaged or self._broke:
                self.warnings.append(f"the stream ended: {self._broke or 'its end is missing'}")
        elif self._damaged or self._broke or share:
            why = self._broke or "its end is missing"
            share = share or f"{self._decoded_count} frames"
            self.warnings.append(f"damaged or cut short ({why}): {share} could be read")
        if self._changed:
            self.warnings.append(self._changed)
        self.warnings += self._told_of_frames()
        if not self._shown:
            raise MediaError(f"{self.source}: no frame lies between --start and --end")

    def _told_of_frames(self) -> Iterator[str]:
        if self._corrupt:
            yield f"damaged frames: {self._corrupt}; they are done as far as they could be decoded"
        if self._unreadable:
            yield f"frames before the first key frame: {self._unreadable}; they cannot be decoded and are left out"
        for seconds in self._timeline.falls[:_FALLS_TOLD]:
            yield f"its clock falls back at {seconds:.2f} s of the result, as where recordings are joined; times go on"
        if self._retimed:
            yield f"{self._retimed} frames had times that did not rise; they follow their predecessor"
        if self._interlaced:
            yield "is interlaced; both fields stay woven in one picture and the result is progressive"
        if self._captioned:
            yield "has closed captions inside its pictures, which are left out"
        if self._dropped:
            yield f"{self._dropped} frames came faster than they could be done and were left out"


def _alpha_decoder(stream: VideoStream) -> VideoCodecContext | None:
    """For VP8 and VP9 with transparency, which FFmpeg's own decoders leave out: libvpx."""
    import av

    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return None
    decoder = cast("VideoCodecContext", av.CodecContext.create(name, "r"))
    decoder.thread_count = stream.codec_context.thread_count
    return decoder


def _too_large(source: Path | str, width: int, height: int, limit: int) -> MediaError:
    return MediaError(
        f"{source}: {width}x{height} is {width * height / 1e6:.6g} megapixels a frame, above the limit of "
        f"{limit / 1e6:.6g}"
    )


def _from_hardware(frame: av.VideoFrame) -> bool:
    """Whether NVDEC made this frame: its chroma lies interleaved, which no software decoder here gives."""
    return frame.format.name.startswith(("nv", "p0", "p2", "p4"))
