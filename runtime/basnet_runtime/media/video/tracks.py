"""Video track selection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from basnet_torch.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = ["chosen_track", "is_cover", "lacks_video", "video_tracks"]


def is_cover(stream: VideoStream) -> bool:
    """Whether a video stream is one still picture, such as a cover."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def video_tracks(container: InputContainer) -> list[VideoStream]:
    """Video streams that move, in file order."""
    return [stream for stream in container.streams.video if not is_cover(stream)]


def lacks_video(container: InputContainer, source: Path | str) -> MediaError:
    """What to say of a file without video: what it holds instead."""
    kinds = {"sound": container.streams.audio, "subtitles": container.streams.subtitles}
    only = " and ".join(kind for kind, streams in kinds.items() if streams)
    return MediaError(f"{source}: has no video stream{f', only {only}' if only else ''}")


def chosen_track(container: InputContainer, source: Path | str, number: int | None) -> VideoStream:
    """Choose a track by number, from 1, else the default one, else the first.

    Raises:
        MediaError: There is no video, no decoder for it, or no track of that number.
    """
    from av.stream import Disposition

    tracks = video_tracks(container)
    if not tracks:
        raise lacks_video(container, source)
    if number is not None:
        if number > len(tracks):
            has = "one video track" if len(tracks) == 1 else f"{len(tracks)} video tracks"
            raise MediaError(f"{source}: --video-track is {number}, but it has {has}")
        if tracks[number - 1].codec_context is None:
            raise MediaError(f"{source}: video track {number} has an unknown codec")
        return tracks[number - 1]
    known = [stream for stream in tracks if stream.codec_context is not None]
    if not known:
        raise MediaError(f"{source}: its video has an unknown codec")
    return next((stream for stream in known if stream.disposition & Disposition.default), known[0])
