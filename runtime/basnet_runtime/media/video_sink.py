"""Writing video: every result at its frame's own time, with the source's audio and subtitles copied packet by packet.

    sink = VideoSink(Path("clip.mask.mp4"), source.traits, OutputKind(), overwrite=False)

The file appears under its name when it is complete; a run that fails leaves nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from basnet_runtime.media.compose import OutputKind
from basnet_runtime.media.files import PendingFile
from basnet_runtime.media.frame import Composed, UInt8
from basnet_runtime.media.video import Colour, VideoTraits, av_detail, open_input
from basnet_runtime.threads import allowed_threads
from basnet_runtime.timing import StageClock
from basnet_torch.errors import MediaError, UsageError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = ["VIDEO_OUTPUTS", "PacketCopier", "VideoSink", "check_output", "default_suffix"]

VIDEO_OUTPUTS = (".mkv", ".mov", ".mp4", ".webm")
_ALPHA_OUTPUTS = (".mov", ".webm")
_FORMATS = {".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".webm": "webm"}
# What players open, which is less than what the muxer writes: it puts Vorbis and PCM in .mp4 too.
_MP4_CODECS = {"aac", "ac3", "alac", "eac3", "flac", "mov_text", "mp2", "mp3", "opus"}
_MAX_TIMESCALE = 1_000_000_000
_MAX_ENCODE_THREADS = 4
_UNSPECIFIED = 2
_SMPTE170M = 6
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273 number to swscale's; others decode as BT.601
_LIMITED = 1
_FROM_FULL_RANGE = np.rint(16 + np.arange(256) * (219 / 255)).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoder:
    codec: str
    pixels: str
    options: dict[str, str]


def _encoder(suffix: str, kind: OutputKind, height: int, width: int) -> _Encoder:
    """The encoder of a container and kind. No B-frames: each packet's time is then its frame's."""
    odd = height % 2 or width % 2
    if kind.has_alpha and suffix == ".mov":
        return _Encoder(codec="prores_ks", pixels="yuva444p10le", options={"profile": "4444", "alpha_bits": "16"})
    if suffix == ".webm":
        pixels = "yuva420p" if kind.has_alpha else "yuv420p"
        speed = {"deadline": "realtime", "cpu-used": "7", "row-mt": "1", "auto-alt-ref": "0", "lag-in-frames": "0"}
        return _Encoder(codec="libvpx-vp9", pixels=pixels, options={"crf": "24", "b": "0", **speed})
    if kind.name == "mask":
        # 4:2:0 needs even sizes; without chroma any size goes. On smooth masks ultrafast is not only the cheapest
        # preset but also the one closest to them (at 1280x720: 3 ms, mean error 0.3 of 255, largest 9).
        options = {"preset": "ultrafast", "crf": "18", "bf": "0"}
        return _Encoder(codec="libx264", pixels="gray" if odd else "yuv420p", options=options)
    options = {"preset": "veryfast", "crf": "18", "bf": "0"}
    return _Encoder(codec="libx264", pixels="yuv444p" if odd else "yuv420p", options=options)


def default_suffix(path: Path, kind: OutputKind) -> str:
    """The container for a video's result that holds its audio and subtitles: .mp4 where it can, then .mov, then .mkv.

    Raises:
        MediaError: The file cannot be read as media, or no container holds both transparency and the audio.
    """
    candidates = _ALPHA_OUTPUTS if kind.has_alpha else (".mp4", ".mov", ".mkv")
    with open_input(path) as container:
        names = _names(_copied(container))
    for suffix in candidates:
        if not _unfit(names, suffix):
            return suffix
    raise MediaError(
        f"{path}: no container with transparency holds its {' and '.join(names)} stream; convert that first"
    )


def check_output(path: Path, target: Path, kind: OutputKind) -> None:
    """Refuse a container that cannot hold the result of `path`.

    Raises:
        UsageError: With the suffixes that can.
        MediaError: The file cannot be read as media.
    """
    suffix = target.suffix.lower()
    if suffix not in VIDEO_OUTPUTS:
        raise UsageError(f"{target}: video is written as {', '.join(VIDEO_OUTPUTS)}, not {suffix or 'no suffix'}")
    if kind.has_alpha and suffix not in _ALPHA_OUTPUTS:
        advice = ".mov (ProRes 4444) or .webm (VP9)"
        raise UsageError(f"{target}: {suffix} video holds no transparency; write a cutout as {advice}")
    with open_input(path) as container:
        unfit = _unfit(_names(_copied(container)), suffix)
    if unfit:
        raise UsageError(f"{target}: {suffix} cannot hold the {unfit[0]} stream of {path.name}; use .mkv")


def _copied(container: InputContainer) -> list[Stream]:
    """Streams that go to the output as they are."""
    streams: Iterable[Stream] = (*container.streams.audio, *container.streams.subtitles)
    return [stream for stream in streams if getattr(stream, "codec_context", None) is not None]


def _names(streams: list[Stream]) -> list[str]:
    return [stream.codec_context.codec.canonical_name for stream in streams]


def _unfit(names: list[str], suffix: str) -> list[str]:
    held = _holds(suffix)
    return [name for name in names if name not in held]


@lru_cache(maxsize=8)
def _holds(suffix: str) -> frozenset[str]:
    """Codec names a container may hold."""
    import io

    import av

    if suffix == ".mp4":
        return frozenset(_MP4_CODECS)
    with av.open(io.BytesIO(), "w", format=_FORMATS[suffix]) as container:
        return frozenset(container.supported_codecs) - ({"vorbis"} if suffix == ".mov" else set())


class PacketCopier:
    """Audio and subtitle packets of a file, in time order, copied without decoding.

    It opens the file on its own, so that the decoder need not carry packets along.
    """

    def __init__(self, path: Path, output: OutputContainer) -> None:
        self._container = open_input(path)
        self.warning = ""
        self._outputs = {}
        for stream in _copied(self._container):
            copy = output.add_stream_from_template(stream)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self._outputs[stream.index] = copy
        self._packets = self._demuxed()
        self._next: Packet[Any] | None = None

    def until(self, seconds: float) -> Iterator[Packet[Any]]:
        """Packets that start no later than `seconds`, ready for the output."""
        while True:
            packet = self._next or next(self._packets, None)
            self._next = None
            if packet is None:
                return
            if float((packet.dts or 0) * packet.time_base) > seconds:
                self._next = packet
                return
            packet.stream = self._outputs[packet.stream_index]
            yield packet

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _demuxed(self) -> Iterator[Packet[Any]]:
        from av.error import FFmpegError

        if not self._outputs:
            return
        try:
            for packet in self._container.demux(*(self._container.streams[index] for index in self._outputs)):
                if packet.size and packet.dts is not None:
                    yield packet
        except (FFmpegError, OSError) as error:
            self.warning = f"audio is damaged or cut short ({av_detail(error)})"


class VideoSink:
    """One output video. The encoder opens with the first result, so that its threads are known as its own.

    Attributes:
        warnings: What a user should know about the output; complete after `finish`.
    """

    def __init__(self, target: Path, traits: VideoTraits, kind: OutputKind, *, overwrite: bool) -> None:
        """Prepare; the file is created by the first `write`."""
        self.warnings: list[str] = []
        self._target = target
        self._traits = traits
        self._kind = kind
        self._overwrite = overwrite
        self._file: PendingFile | None = None
        self._writer: _Writer | None = None

    def write(self, item: Composed, clock: StageClock) -> None:
        """Encode one result at its frame's time.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        with _av_errors(self._target):
            if self._writer is None:
                with clock.adopt("encode"):
                    self._writer = self._open()
                    self._writer.write(item)
            else:
                self._writer.write(item)

    def finish(self, clock: StageClock) -> None:
        """Flush, copy what is left of the audio, and give the file its name.

        Raises:
            MediaError: The encoder or the disk refuses.
        """
        if self._writer is None or self._file is None:
            raise MediaError(f"{self._target}: there was no frame to write")
        with _av_errors(self._target):
            self._writer.flush()
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

    def _open(self) -> _Writer:
        self._file = PendingFile(self._target, overwrite=self._overwrite)
        return _Writer(self._file.path, self._traits, self._kind)


class _Writer:
    """An open output: its container, its encoder, and the packets that are copied beside."""

    def __init__(self, path: Path, traits: VideoTraits, kind: OutputKind) -> None:
        import av

        self.warnings: list[str] = []
        self._traits = traits
        self._durations: dict[int, int] = {}
        suffix = path.suffix.lower()
        in_milliseconds = suffix in (".mkv", ".webm")
        options = {} if in_milliseconds else _timescales(traits)
        self._container = av.open(f"file:{path}", "w", format=_FORMATS[suffix], options=options)
        self._stream = _video_stream(self._container, _encoder(suffix, kind, traits.height, traits.width), traits)
        self._pixels = self._stream.codec_context.pix_fmt or ""
        self._copier = PacketCopier(traits.path, self._container)
        if in_milliseconds and 1000 % traits.time_base.denominator:
            self.warnings.append(f"{suffix} keeps times to the millisecond; .mp4 and .mov keep them exactly")

    def write(self, item: Composed) -> None:
        grey = item.pixels.ndim == 2
        frame = _grey_frame(item.pixels, self._pixels) if grey else self._colour_frame(item.pixels, item.alpha_HW)
        frame.pts, frame.time_base = item.frame.pts, self._traits.time_base
        self._durations[item.frame.pts] = item.frame.duration
        self._encode(frame)

    def flush(self) -> None:
        self._encode(None)
        self._container.mux(list(self._copier.until(math.inf)))

    def close(self) -> None:
        self._copier.close()
        self._container.close()
        if self._copier.warning:
            self.warnings.append(self._copier.warning)

    def _encode(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            if packet.pts is not None:
                packet.duration = self._durations.pop(packet.pts, 0) or packet.duration
                start = float(packet.pts * self._traits.time_base)
                self._container.mux(list(self._copier.until(start)))
            self._container.mux(packet)

    def _colour_frame(self, image_HWC: UInt8, alpha_HW: UInt8 | None) -> av.VideoFrame:
        import av

        if alpha_HW is None:
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
        else:
            frame = av.VideoFrame.from_ndarray(np.dstack([image_HWC, alpha_HW]), format="rgba")
        matrix = _SWSCALE_MATRIX.get(_colour(self._traits).matrix, 5)
        return frame.reformat(format=self._pixels, dst_colorspace=matrix, dst_color_range=_LIMITED, threads=1)


@contextmanager
def _av_errors(target: Path) -> Iterator[None]:
    """FFmpeg's and the system's errors as ours."""
    from av.error import FFmpegError

    try:
        yield
    except MediaError:
        raise
    except (FFmpegError, OSError) as error:
        raise MediaError(f"{target}: {av_detail(error)}") from error


def _timescales(traits: VideoTraits) -> dict[str, str]:
    """Clocks of an .mp4 that hold the times of the source exactly, starts of streams included."""
    video = traits.time_base.denominator
    with open_input(traits.path) as container:
        bases = [stream.time_base.denominator for stream in _copied(container) if stream.time_base]
    movie = math.lcm(video, *bases)
    return {
        "video_track_timescale": str(video),
        "movie_timescale": str(movie if movie <= _MAX_TIMESCALE else video),
        "movflags": "+faststart",
    }


def _video_stream(container: OutputContainer, encoder: _Encoder, traits: VideoTraits) -> VideoStream:
    stream = cast("VideoStream", container.add_stream(encoder.codec, rate=traits.rate, options=encoder.options))
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = traits.width, traits.height, encoder.pixels
    context.time_base = traits.time_base
    context.sample_aspect_ratio = traits.pixel_aspect
    context.color_range = _LIMITED
    context.thread_count = min(_MAX_ENCODE_THREADS, allowed_threads())
    colour = _colour(traits)
    context.colorspace, context.color_primaries, context.color_trc = colour.matrix, colour.primaries, colour.transfer
    return stream


def _colour(traits: VideoTraits) -> Colour:
    """The source's own description, so that the same player shows the same colours; RGB has no matrix."""
    colour = traits.colour
    known = colour.matrix in _SWSCALE_MATRIX or colour.matrix == _UNSPECIFIED
    return colour if known else Colour(matrix=_SMPTE170M, primaries=colour.primaries, transfer=colour.transfer)


def _grey_frame(mask_HW: UInt8, pixels: str) -> av.VideoFrame:
    """A mask as luma in video range, without colour; 0..255 becomes 16..235, which every player undoes."""
    import av
    import cv2

    height, width = mask_HW.shape
    frame = av.VideoFrame(width, height, pixels)
    luma, *chroma = frame.planes
    rows = np.frombuffer(memoryview(luma), np.uint8).reshape(-1, luma.line_size)[:height, :width]
    rows[:] = cv2.LUT(mask_HW, _FROM_FULL_RANGE).reshape(height, width)
    for plane in itertools.islice(chroma, 2):
        np.frombuffer(memoryview(plane), np.uint8)[:] = 128
    return frame
