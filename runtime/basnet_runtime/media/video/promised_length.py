"""Video length that a container promises, to detect truncated files."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["PromisedLength", "promised_length"]

_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_MATROSKA = "matroska,webm"
# Of these FFmpeg reads the length from a header. Of others it estimates it from what is there, also of half a file.
_WITH_LENGTH = {_MATROSKA, "asf", "flv", "mxf", "nut", "rm"}
_FULL = {"dv", "yuv4mpegpipe"}  # nothing but frames of one size: half a frame at the end is the rest of a cut file
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD_BYTES = 1 << 16
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromisedLength:
    """Length of a video as its file states it; 0 where it does not.

    Attributes:
        frames: Number of frames shown.
        seconds: End of the last frame, on the file's clock.
        of_all_streams: Whether `seconds` is the end of the longest stream, which need not be the video.
        nbytes: Of the file, where its packets fill it up to the end.
    """

    frames: int = 0
    seconds: float = 0.0
    of_all_streams: bool = False
    nbytes: int = 0


def promised_length(container: InputContainer, stream: VideoStream) -> PromisedLength:
    """Length that the container or the stream states."""
    name = container.format.name
    if name == _MOV and stream.frames:
        index = stream.index_entries  # without what an edit list cuts off
        shown = sum(not entry.is_discard for entry in index) if len(index) else stream.frames
        return PromisedLength(frames=min(stream.frames, shown))
    if name == "avi" and stream.time_base:  # its frames are ticks: a dropped one is none
        return PromisedLength(seconds=float(max(stream.frames, stream.duration or 0) * stream.time_base))
    if name == _MATROSKA and (seconds := _tagged_seconds(stream.metadata)):
        return PromisedLength(seconds=seconds)  # the container's may be that of a subtitle without an end
    if name == "asf" and not container.duration:
        return PromisedLength(seconds=_asf_seconds(Path(container.name.removeprefix("file:"))), of_all_streams=True)
    if name in _WITH_LENGTH or name == _MOV:
        return PromisedLength(seconds=(container.duration or 0) / 1e6, of_all_streams=True)
    return PromisedLength(frames=stream.frames, nbytes=container.size if name in _FULL else 0)


def _asf_seconds(path: Path) -> float:
    """Length in the header of an .asf or .wmv; FFmpeg does not tell it where the file is smaller than it says."""
    try:
        with path.open("rb") as file:
            head = file.read(_ASF_HEAD_BYTES)
    except OSError:  # a network stream
        return 0.0
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or at + 88 > len(head):
        return 0.0
    length, _, preroll = struct.unpack_from("<QQQ", head, at + 64)
    return max(0.0, float(length / 1e7 - preroll / 1e3))


def _tagged_seconds(tags: Mapping[str, str]) -> float:
    """The statistics tag DURATION of a Matroska stream, also with a language behind it."""
    for key, value in tags.items():
        if key.upper().partition("-")[0] == "DURATION" and (found := _CLOCK.match(value)):
            return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    return 0.0
