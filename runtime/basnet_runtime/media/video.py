"""Reading video: upright RGB frames, each with its own presentation time.

    with VideoSource(Path("clip.mp4")) as source:
        for frame in source.frames(room, clock): ...

PyAV (FFmpeg) decodes. The rotation stored in a file is applied to the pixels, so that the network and the output see
what a viewer sees. A damaged or truncated file gives what can be decoded, and `warnings` says what is missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from basnet_runtime.media.frame import Frame, UInt8
from basnet_runtime.threads import allowed_threads
from basnet_runtime.timing import StageClock
from basnet_torch.errors import MediaError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from basnet_runtime.pipeline import Room

__all__ = ["Colour", "Upright", "VideoSource", "VideoTraits", "av_detail", "open_input"]

_MAX_DECODE_THREADS = 4
_FALLBACK_RATE = Fraction(25)


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """How YUV samples mean colours, as numbers of the H.273 standard; 2 is unspecified.

    Attributes:
        matrix: Matrix coefficients.
        primaries: Colour primaries.
        transfer: Transfer characteristics.
    """

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoTraits:
    """What an output must keep of a video; sizes and pixel aspect are those of the upright picture.

    Attributes:
        path: The file.
        height: Rows.
        width: Columns.
        time_base: Seconds per tick of every `pts`.
        rate: Average frames per second.
        pixel_aspect: Width of one pixel by its height.
        colour: Of the source's samples.
        frames: Number of frames the file promises, 0 where it does not say.
        seconds: Length the file promises, 0 where it does not say.
    """

    path: Path
    height: int
    width: int
    time_base: Fraction
    rate: Fraction
    pixel_aspect: Fraction
    colour: Colour
    frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Upright:
    """One of the eight ways to turn a stored picture upright: exchange the axes first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def from_matrix(cls, values: tuple[int, ...]) -> Self:
        """From the nine numbers of a display matrix (a b u c d v x y w), which maps x' = a x + c y, y' = b x + d y.

        >>> Upright.from_matrix((0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
        Upright(transpose=True, mirror_x=True, mirror_y=False)
        """
        a, b, _, c, d = values[:5]
        transpose = abs(b) + abs(c) > abs(a) + abs(d)
        across, down = (c, b) if transpose else (a, d)
        return cls(transpose=transpose, mirror_x=across < 0, mirror_y=down < 0)

    def apply(self, image_HWC: UInt8) -> UInt8:
        """Turn a picture; H and W change places with `transpose`."""
        if self == Upright():
            return image_HWC
        import cv2

        out = cv2.transpose(image_HWC) if self.transpose else image_HWC
        if self.mirror_x or self.mirror_y:
            out = cv2.flip(out, -1 if self.mirror_x and self.mirror_y else int(self.mirror_x))
        return np.ascontiguousarray(out, np.uint8).reshape(*out.shape[:2], image_HWC.shape[2])


class VideoSource:
    """Frames of the first video stream; a context manager.

    Attributes:
        traits: What the output must keep.
        warnings: What went wrong without ending the run; complete once `frames` has ended.
    """

    def __init__(self, path: Path) -> None:
        """Open, and decode the first frame: only it tells the size and rotation of every kind of file.

        Raises:
            MediaError: Not a video, or nothing of it can be decoded.
        """
        from av.video.reformatter import VideoReformatter

        self.path = path
        self.warnings: list[str] = []
        self._threads = StageClock()
        self._reformatter = VideoReformatter()
        self._container = open_input(path)
        self._damaged = self._shown = self._retimed = 0
        self._last = -1
        self._broke = ""
        try:
            self._stream = _video_stream(self._container, path)
            self._decoded = self._decode()
            with self._threads.adopt("decode"):
                first = next(self._decoded, None)
            if first is None:
                raise MediaError(f"{path}: no frame can be decoded{self._broke and ': ' + self._broke}")
        except BaseException:
            self.close()
            raise
        self._first = first
        self._format = (first.width, first.height)
        self._upright = _upright_of(first)
        self.traits = self._traits_of(first)

    def _traits_of(self, first: av.VideoFrame) -> VideoTraits:
        stream = self._stream
        height, width = first.height, first.width
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        if self._upright.transpose:
            height, width, aspect = width, height, 1 / aspect
        rate = stream.average_rate or stream.guessed_rate or _FALLBACK_RATE
        return VideoTraits(
            path=self.path,
            height=height,
            width=width,
            time_base=Fraction(stream.time_base or 1 / rate),
            rate=Fraction(stream.guessed_rate or rate) if first.pts is None else Fraction(rate),
            pixel_aspect=aspect,
            colour=Colour(
                matrix=int(first.colorspace), primaries=int(first.color_primaries), transfer=int(first.color_trc)
            ),
            frames=stream.frames,
            seconds=float(self._container.duration or 0) / 1e6,
        )

    def frames(self, room: Room, clock: StageClock) -> Iterator[Frame]:
        """Every frame in order of presentation, times strictly rising; call once.

        Raises:
            MediaError: The picture changes its size on the way.
        """
        clock.owned["decode"] = self._threads.owned.get("decode", {})
        nbytes = self.traits.height * self.traits.width * 3
        decoded = itertools.chain([self._first], self._decoded)
        del self._first
        while True:
            room.wait(nbytes)
            with clock.stage("decode"):
                raw = next(decoded, None)
                frame = None if raw is None else self._frame(raw)
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

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:
                self._broke = av_detail(error)
                packet = None
            if packet is None:
                break
            try:
                yield from packet.decode()
            except FFmpegError as error:
                self._damaged += 1
                self._broke = self._broke or av_detail(error)

    def _frame(self, raw: av.VideoFrame) -> Frame:
        if (raw.width, raw.height) != self._format:
            was, now = (f"{w}x{h}" for w, h in (self._format, (raw.width, raw.height)))
            raise MediaError(
                f"{self.path}: the picture changes from {was} to {now} at frame {self._shown}; split it there"
            )
        # One thread: the frame before is still in the network, which has better use for the others.
        rgb = self._reformatter.reformat(raw, format="rgb24", threads=1)
        image_HWC = self._upright.apply(np.asarray(rgb.to_ndarray(), np.uint8))
        frame = Frame(image_HWC=image_HWC, index=self._shown, pts=self._time_of(raw), duration=raw.duration or 0)
        self._shown += 1
        return frame

    def _time_of(self, raw: av.VideoFrame) -> int:
        """The frame's own time; one step after the last where it has none or runs backwards."""
        step = max(1, round(1 / (self.traits.rate * self.traits.time_base)))
        if raw.pts is None:
            self._last = 0 if self._shown == 0 else self._last + step
        elif self._shown and raw.pts <= self._last:
            self._retimed += 1
            self._last += 1
        else:
            self._last = raw.pts
        return self._last

    def _conclude(self) -> None:
        promised = self.traits.frames
        if self._damaged or self._broke or promised > self._shown:
            share = f"{self._shown} of {promised} frames" if promised > self._shown else f"{self._shown} frames"
            self.warnings.append(f"damaged or cut short ({self._broke or 'its end is missing'}): {share} could be read")
        if self._retimed:
            self.warnings.append(f"{self._retimed} frames had times that did not rise; they follow their predecessor")


def open_input(path: Path) -> InputContainer:
    """Open a media file for reading.

    Raises:
        MediaError: It cannot be opened or is no media file.
    """
    import av
    from av.error import FFmpegError

    try:
        # The protocol is named, or FFmpeg takes "http:x" or "concat:x" in a name for one.
        return av.open(f"file:{path}", metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be read as video: {av_detail(error)}") from error


def av_detail(error: Exception) -> str:
    """What FFmpeg says about an error, in lower case, without numbers and file names."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = min(_MAX_DECODE_THREADS, allowed_threads() + 1)
            return stream
    raise MediaError(f"{path}: has no video stream")


def _upright_of(frame: av.VideoFrame) -> Upright:
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Upright()
    return Upright.from_matrix(tuple(int(value) for value in np.frombuffer(data, np.int32)))
