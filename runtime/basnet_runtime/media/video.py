"""Reading video: upright RGB frames, each with its own presentation time.

    with VideoSource(Path("clip.mp4")) as source:
        for frame in source.frames(room, clock): ...

PyAV (FFmpeg) decodes. The rotation stored in a file is applied to the pixels, so that the network and the output see
what a viewer sees. A damaged or truncated file, or one that changes its size on the way, gives what comes before, and
`warnings` says what is missing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from basnet_runtime.media.frame import Frame
from basnet_runtime.media.video_open import HwAccel, av_detail, hardware_decoding, is_address, is_live, open_input
from basnet_runtime.media.video_options import Span
from basnet_runtime.media.video_side import FileSide, LiveSide, Side
from basnet_runtime.media.video_traits import Colour, Upright, VideoTraits
from basnet_runtime.threads import allowed_threads
from basnet_runtime.timing import StageClock
from basnet_torch.errors import BackendUnavailable, MediaError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    from basnet_runtime.pipeline import Room

__all__ = ["MAX_FRAME_PIXELS", "VideoSource"]

MAX_FRAME_PIXELS = 64_000_000  # nearly two 8K pictures; a decoder may hold seventeen frames at once
_MAX_DECODE_THREADS = 4
_FALLBACK_RATE = Fraction(25)
_SEEK_FROM_SECONDS = 10
_LIVE_FRAMES = 4
_LATE_SECONDS = 1.0
_FULL_RANGE = 2
_WITH_EDIT_LISTS = "mov,mp4,m4a,3gp,3g2,mj2"
_HDR = {16: "PQ", 18: "HLG"}


class VideoSource:
    """Frames of the first video stream of a file or network stream; a context manager.

    Attributes:
        traits: What the output must keep.
        warnings: What a user should know about it; complete once `frames` has ended.
        decoder: Which decoder runs, and on what.
        whole: Whether the frames end where the source does: what else it holds then belongs to the result too.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        span: Span | None = None,
        skip: int = 0,
        hwaccel: HwAccel = "none",
        max_pixels: int = MAX_FRAME_PIXELS,
    ) -> None:
        """Open, and decode the first frame: only it tells the size and rotation of every kind of file.

        Args:
            source: A file or an address.
            span: The part to read.
            skip: Frames of that part that an earlier run has done; they are decoded, for exactness, and passed over.
            hwaccel: Where decoding runs.
            max_pixels: Larger frames are refused before they are decoded.

        Raises:
            MediaError: Not a video, or nothing of it can be decoded.
            BackendUnavailable: The asked hardware is not there.
        """
        from av.video.reformatter import VideoReformatter

        self.source = source
        self.warnings: list[str] = []
        self.whole = True
        self._span = span or Span()
        self._skip = skip
        self._max_pixels = min(max_pixels, MAX_FRAME_PIXELS)
        self._threads = StageClock()
        self._reformatter = VideoReformatter()
        self._hwaccel = hardware_decoding(hwaccel)
        self._hwaccel_may_fall_back = hwaccel == "auto"
        self._damaged = self._decoded_count = self._shown = self._retimed = self._dropped = self._interlaced = 0
        self._last = 0
        self._broke = ""
        self._changed = ""
        self._sought = False
        self._side: LiveSide | None = None
        self._container = open_input(source, hwaccel=self._hwaccel)
        try:
            first = self._first_frame()
        except BaseException:
            self.close()
            raise
        self._first: av.VideoFrame | None = first
        self._format = (first.width, first.height)
        self._upright = _upright_of(first)
        self._clear = any(component.is_alpha for component in first.format.components)
        decoder = self._alpha_decoder or self._stream.codec_context
        on_gpu = self._hwaccel is not None and _from_hardware(first)
        self.decoder = f"{decoder.name}, {'CUDA' if on_gpu else 'software'}"
        self.traits = self._traits_of(first)
        self._origin = first.pts or 0
        self._begun = time.monotonic()
        self._tell_of(first)
        self._seek_near_start()

    def _first_frame(self) -> av.VideoFrame:
        self._stream = _video_stream(self._container, self.source, self._max_pixels)
        self._alpha_decoder = _alpha_decoder(self._stream)
        if is_address(self.source):
            self._side = LiveSide(self._container)
        self._decoded = self._decode()
        with self._threads.adopt("decode"):
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

    def _traits_of(self, first: av.VideoFrame) -> VideoTraits:
        stream = self._stream
        height, width = first.height, first.width
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        if self._upright.transpose:
            height, width, aspect = width, height, 1 / aspect
        rate = stream.average_rate or stream.guessed_rate or _FALLBACK_RATE
        return VideoTraits(
            source=self.source,
            height=height,
            width=width,
            time_base=Fraction(stream.time_base or 1 / rate),
            rate=Fraction(stream.guessed_rate or rate) if first.pts is None else Fraction(rate),
            pixel_aspect=aspect,
            colour=Colour(
                matrix=int(first.colorspace),
                primaries=int(first.color_primaries),
                transfer=int(first.color_trc),
                full_range=int(first.color_range) == _FULL_RANGE and not first.format.is_rgb,
            ),
            frames=_promised_frames(stream),
            seconds=float(self._container.duration or 0) / 1e6,
            stream=stream.index,
            part=self._span.start is not None or (is_address(self.source) and not self._container.duration),
        )

    def _tell_of(self, first: av.VideoFrame) -> None:
        bits = max((component.bits for component in first.format.components), default=8)
        if bits > 8:
            self.warnings.append(f"has {bits} bits a sample; it is worked on and written with 8")
        if curve := _HDR.get(self.traits.colour.transfer):
            self.warnings.append(f"is HDR ({curve}); masks are found on its samples as they are stored")

    def _seek_near_start(self) -> None:
        """Go to the key frame before a late start; back to the beginning where the file cannot do that exactly."""
        start, end = self._span.start, self._span.end
        if start is None or start.seconds is None or start.seconds < _SEEK_FROM_SECONDS or is_address(self.source):
            return
        if end is not None and end.frame is not None:
            return  # frames are counted from the beginning
        from av.error import FFmpegError

        target = self._origin + round(start.seconds / self.traits.time_base)
        try:
            self._container.seek(target, stream=self._stream, backward=True)
            self._decoded = self._decode()
            landed = next(self._decoded, None)
        except (FFmpegError, OSError):
            landed = None
        if landed is not None and landed.pts is not None and landed.pts <= target:
            self._first, self._sought, self._last = landed, True, landed.pts - 1
            return
        self._container.close()
        self._container = open_input(self.source, hwaccel=self._hwaccel)
        self._damaged, self._broke = 0, ""
        self._first = self._first_frame()

    @property
    def broken(self) -> bool:
        """Whether frames are missing: damaged, cut off, or of another size than the first ones."""
        return self._missing() or bool(self._changed)

    @property
    def side(self) -> Side:
        """Where the sound and subtitles of this source come from."""
        return self._side or FileSide(Path(self.source))

    def frames(self, room: Room, clock: StageClock) -> Iterator[Frame]:
        """Every frame in order of presentation, times strictly rising; call once."""
        clock.owned["decode"] = self._threads.owned.get("decode", {})
        nbytes = self.traits.height * self.traits.width * (4 if self._clear else 3)
        first, self._first = self._first, None
        decoded = itertools.chain([] if first is None else [first], self._decoded)
        del first
        while True:
            room.wait(0 if is_live(self.source) else nbytes)
            with clock.stage("decode"):
                frame = self._next(decoded, room, nbytes)
            if frame is None:
                break
            yield frame
        clock.collect("decode")
        self._conclude()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Frames as decoded, leaving damaged packets out, up to the end or the break of the file."""
        from av.error import FFmpegError

        streams = [self._stream] if self._side is None else [self._stream, *self._side.streams]
        packets = self._container.demux(*streams)
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:
                self._broke = av_detail(error)
                packet = None
            if packet is None:
                break
            if self._side is not None and packet.stream_index != self._stream.index:
                self._side.put(packet)
                continue
            try:
                if self._alpha_decoder is None:
                    yield from cast("list[av.VideoFrame]", packet.decode())
                else:
                    yield from self._alpha_decoder.decode(cast("Packet[VideoStream]", packet))
            except FFmpegError as error:
                self._damaged += 1
                self._broke = self._broke or av_detail(error)

    def _next(self, decoded: Iterator[av.VideoFrame], room: Room, nbytes: int) -> Frame | None:
        """The next frame that is wanted, or None after the last one."""
        for raw in decoded:
            if (raw.width, raw.height) != self._format:
                was, now = (f"{w}x{h}" for w, h in (self._format, (raw.width, raw.height)))
                self._changed = f"changes from {was} to {now} at frame {self._decoded_count}; it is done up to there"
                self.whole = False
                return None
            index, pts = self._decoded_count, self._time_of(raw)
            self._decoded_count += 1
            seconds = (pts - self._origin) * self.traits.time_base
            if self._span.end is not None and self._span.end.reached(index, seconds):
                self.whole = False
                return None
            if self._span.start is not None and not self._span.start.reached(index, seconds):
                continue
            if self._shown < self._skip:
                self._shown += 1
            elif self._is_late(seconds) and room.used > _LIVE_FRAMES * nbytes:
                self._dropped += 1  # it would wait ever longer; the next one is nearer to now
            else:
                return self._frame(raw, pts)
        return None

    def _is_late(self, seconds: Fraction) -> bool:
        """Whether a live frame, shown at `seconds` after the first, comes long after its time."""
        return is_live(self.source) and time.monotonic() - self._begun - float(seconds) > _LATE_SECONDS

    def _frame(self, raw: av.VideoFrame, pts: int) -> Frame:
        self._interlaced += raw.interlaced_frame
        # One thread: the frame before is still in the network, which has better use for the others.
        pixels = self._reformatter.reformat(raw, format="rgba" if self._clear else "rgb24", threads=1)
        image_HWC = self._upright.apply(np.asarray(pixels.to_ndarray(), np.uint8))
        alpha_HW = None
        if self._clear:
            image_HWC, alpha_HW = np.ascontiguousarray(image_HWC[..., :3]), np.ascontiguousarray(image_HWC[..., 3])
        duration = raw.duration or 0
        frame = Frame(image_HWC=image_HWC, alpha_HW=alpha_HW, index=self._shown, pts=pts, duration=duration)
        self._shown += 1
        return frame

    def _time_of(self, raw: av.VideoFrame) -> int:
        """The frame's own time; one step after the last where it has none or runs backwards."""
        first = self._decoded_count == 0 and not self._sought
        if raw.pts is None:
            step = max(1, round(1 / (self.traits.rate * self.traits.time_base)))
            self._last = 0 if first else self._last + step
        elif not first and raw.pts <= self._last:
            self._retimed += 1
            self._last += 1
        else:
            self._last = raw.pts
        return self._last

    def _missing(self) -> bool:
        return bool(self._damaged or self._broke) or self._promised() > self._decoded_count

    def _promised(self) -> int:
        """Frames that the file says it has, where all of them are read."""
        return self.traits.frames if self.whole and not self._sought else 0

    def _conclude(self) -> None:
        seen, promised = self._decoded_count, self._promised()
        if self._missing():
            share = f"{seen} of {promised} frames" if promised > seen else f"{seen} frames"
            if is_live(self.source):
                self.warnings.append(f"the stream ended: {self._broke or 'its end is missing'}")
            else:
                why = self._broke or "its end is missing"
                self.warnings.append(f"damaged or cut short ({why}): {share} could be read")
        if self._changed:
            self.warnings.append(self._changed)
        if self._retimed:
            self.warnings.append(f"{self._retimed} frames had times that did not rise; they follow their predecessor")
        if self._interlaced:
            self.warnings.append("is interlaced; both fields stay woven in one picture and the result is progressive")
        if self._dropped:
            self.warnings.append(f"{self._dropped} frames came faster than they could be done and were left out")
        if not self._shown:
            raise MediaError(f"{self.source}: no frame lies between --start and --end")


def _video_stream(container: InputContainer, source: Path | str, max_pixels: int) -> VideoStream:
    from av.stream import Disposition

    for stream in container.streams.video:
        context = stream.codec_context
        if stream.disposition & Disposition.attached_pic or context is None:
            continue
        if context.width * context.height > max_pixels:
            raise _too_large(source, context.width, context.height, max_pixels)
        context.options = {"max_pixels": str(max_pixels)}  # a later header may say otherwise than the first
        if not context.is_hwaccel:
            stream.thread_type = "AUTO"
            context.thread_count = min(_MAX_DECODE_THREADS, allowed_threads() + 1)
        return stream
    raise MediaError(f"{source}: has no video stream")


def _promised_frames(stream: VideoStream) -> int:
    """How many frames the file says it shows, 0 where it does not: not those that an edit list cuts off."""
    index = stream.index_entries
    if not stream.frames or stream.container.format.name != _WITH_EDIT_LISTS or not len(index):
        return stream.frames
    return min(stream.frames, sum(not entry.is_discard for entry in index))


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


def _upright_of(frame: av.VideoFrame) -> Upright:
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # it also carries data that PyAV has no name for, such as EXIF: the angle alone can be had
        return Upright.from_angle(frame.rotation)
    if data is None:
        return Upright()
    return Upright.from_matrix(tuple(int(value) for value in np.frombuffer(data, np.int32)))
