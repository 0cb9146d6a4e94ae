"""Video options: span, codec, quality, hardware, copied streams."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import not_
from typing import TYPE_CHECKING, Literal, Self

from basnet_runtime.kinds import HwAccel
from basnet_torch.errors import UsageError
from basnet_torch.options import GROUP, check, option

if TYPE_CHECKING:
    from fractions import Fraction

__all__ = ["Codec", "Moment", "Span", "VideoOptions"]

Codec = Literal["h264", "hevc", "av1", "vp9", "prores", "ffv1"]
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")
_FRAME = re.compile(r"(\d+)f")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A place in a video: a time after its first frame, or the number of a frame.

    Attributes:
        seconds: After the first frame; None when `frame` says it.
        frame: Counted from 0; None when `seconds` says it.
    """

    seconds: Fraction | None = None
    frame: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `12.5`, `1:30`, `1:02:03.5` or `300f`.

        Raises:
            UsageError: It is none of these.

        >>> Moment.parse("1:30").seconds, Moment.parse("300f").frame
        (Fraction(90, 1), 300)
        """
        if found := _FRAME.fullmatch(text):
            return cls(frame=int(found[1]))
        if found := _CLOCK.fullmatch(text):
            from fractions import Fraction

            hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
            return cls(seconds=hours * 3600 + minutes * 60 + seconds)
        raise UsageError(f"{text!r} is no place in a video; write seconds (12.5), a time (1:02:03.5) or a frame (300f)")

    def reached(self, index: int, seconds: Fraction) -> bool:
        """Whether a frame, by its number and time, is at this moment or after it."""
        if self.frame is not None:
            return index >= self.frame
        return self.seconds is None or seconds >= self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Part of a video, from `start` to before `end`; None is the video's own."""

    start: Moment | None = field(
        default=None,
        metadata=option(
            "Of video, begin here: seconds, 1:02:03.5 or a frame's number such as 300f.", parse=Moment.parse
        ),
    )
    end: Moment | None = field(
        default=None, metadata=option("Of video, end before here; as --start.", parse=Moment.parse)
    )

    def __post_init__(self) -> None:
        if self.start is None or self.end is None:
            return
        for first, last in ((self.start.seconds, self.end.seconds), (self.start.frame, self.end.frame)):
            if first is not None and last is not None and last <= first:
                raise UsageError("--end is not after --start; nothing would be left")

    @classmethod
    def parse(cls, start: str | None, end: str | None) -> Self:
        """From the texts of `--start` and `--end`.

        Raises:
            UsageError: One of them is no place in a video, or the end is not after the start.
        """
        return cls(start=None if start is None else Moment.parse(start), end=None if end is None else Moment.parse(end))


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoOptions:
    """How videos are read and written; each field's help says what it is."""

    codec: Codec | None = field(
        default=None, metadata=option("Codec of video results. Default: the container's usual one.")
    )
    quality: int | None = field(
        default=None, metadata=option("Of video results, more is better. Default: right for most.", min=1, max=100)
    )
    span: Span = field(default_factory=Span, metadata=GROUP)
    resume: bool = field(
        default=False, metadata=option("Encode video in segments, and resume a killed run.", "--resume")
    )
    sound: bool = field(default=True, metadata=option("Leave the audio of video out.", "--no-sound", parse=not_))
    subtitles: bool = field(
        default=True, metadata=option("Leave the subtitles of video out.", "--no-subtitles", parse=not_)
    )
    track: int | None = field(
        default=None,
        metadata=option("Video track, counted from 1. Default: the file's default track.", "--video-track", min=1),
    )
    hwaccel: HwAccel = field(default="auto", metadata=option("Hardware that decodes and encodes video."))

    def __post_init__(self) -> None:
        check(self)
