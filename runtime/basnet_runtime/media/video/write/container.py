"""Output container: checked by writing a header with the streams to memory."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.open import camera_of, is_address, open_input
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.times import frame_rate
from basnet_runtime.media.video.tracks import chosen_track
from basnet_runtime.media.video.write.encoder import check_rate, codec_for, containers_of
from basnet_torch.errors import UsageError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream

__all__ = [
    "FORMATS",
    "check_output",
    "copied_streams",
    "default_suffix",
    "fitting_suffixes",
    "holds",
    "keeps_times_below_zero",
    "named",
    "takes_packet",
]

FORMATS = {".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".webm": "webm"}
# The muxers write more than players open. Of .mp4 this is what they do open, of .mov what they do not.
_PLAYED_IN_MP4 = {"aac", "ac3", "alac", "eac3", "flac", "mov_text", "mp2", "mp3", "opus"}
_LEAVE_OUT = {"audio": "--no-sound", "subtitle": "--no-subtitles"}
_CODEC_DELAY = b"\x56\xaa"  # Matroska's element
_NOT_PLAYED_IN_MOV = {"dts", "vorbis"}


def copied_streams(container: InputContainer, options: VideoOptions | None = None) -> list[Stream]:
    """Audio and subtitle streams to copy, without those of an unknown codec."""
    options = options or VideoOptions()
    streams: list[Stream] = [*container.streams.audio] if options.sound else []
    if options.subtitles:
        streams += container.streams.subtitles
    return [stream for stream in streams if getattr(stream, "codec_context", None) is not None]


def named(stream: Stream) -> str:
    """The name of a stream's codec: of the codec, not of what decodes it."""
    return stream.codec_context.codec.canonical_name


def holds(suffix: str, stream: Stream) -> bool:
    """Whether a container holds a stream: its muxer takes it, players open it."""
    name = named(stream)
    if (suffix == ".mp4" and name not in _PLAYED_IN_MP4) or (suffix == ".mov" and name in _NOT_PLAYED_IN_MOV):
        return False
    return _header(suffix, stream) is not None


def keeps_times_below_zero(suffix: str, stream: Stream) -> bool:
    """Whether packets before 0 stay; Matroska needs a codec delay for that."""
    return suffix in (".mp4", ".mov") or _CODEC_DELAY in (_header(suffix, stream) or b"")


def _header(suffix: str, stream: Stream) -> bytes | None:
    """What a container's muxer writes before the first packet of this stream; None where it does not take it."""
    import av
    from av.error import FFmpegError

    file = io.BytesIO()
    try:
        container = av.open(file, "w", format=FORMATS[suffix])
        container.add_stream_from_template(stream)
        container.start_encoding()
    except (FFmpegError, ValueError, OSError, NotImplementedError):
        return None
    with suppress(FFmpegError, ValueError, OSError):  # some trailers want packets
        container.close()
    return file.getvalue()


def takes_packet(suffix: str, stream: Stream, packet: Packet[Any]) -> bool:
    """Whether a container takes a stream's first packet; some muxers parse it."""
    import av
    from av.error import FFmpegError, InvalidDataError

    before = packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration
    try:
        container = av.open(io.BytesIO(), "w", format=FORMATS[suffix])
        packet.stream = container.add_stream_from_template(stream)
        container.start_encoding()
        container.mux_one(packet)
    except InvalidDataError:  # the packet is damaged; that says nothing of those that follow
        return True
    except (FFmpegError, ValueError, OSError, NotImplementedError):
        return False
    finally:
        packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = before
    with suppress(FFmpegError, ValueError, OSError):
        container.close()
    return True


def fitting_suffixes(stream: Stream, kind: OutputKind, options: VideoOptions) -> list[str]:
    """Containers for this kind of result that take a stream, the most usual first."""
    return [suffix for suffix in containers_of(kind, options.codec) if holds(suffix, stream)]


def default_suffix(source: Path, kind: OutputKind, options: VideoOptions | None = None) -> str:
    """Choose the container: the most usual one that takes most copied streams.

    Args:
        source: The video.
        kind: What is made of it.
        options: The user's choices; not every container holds every codec.

    Raises:
        MediaError: The file cannot be read as media.
    """
    options = options or VideoOptions()
    candidates = containers_of(kind, options.codec)
    with open_input(source) as container:
        taken = [
            (stream.type == "audio", set(fitting_suffixes(stream, kind, options)))
            for stream in copied_streams(container, options)
        ]

    def worth(suffix: str) -> tuple[int, int]:
        audio = sum(suffix in suffixes for is_audio, suffixes in taken if is_audio)
        return audio, sum(suffix in suffixes for _, suffixes in taken)

    return max(candidates, key=worth)  # the first of equals


def check_output(source: Path | str, target: Path, kind: OutputKind, options: VideoOptions | None = None) -> None:
    """Refuse a container, codec or track that cannot give the result of `source`.

    A stream that no container takes is no reason: it is left out. Of a network stream only its name is known yet.

    Raises:
        UsageError: With the suffixes or codecs that can.
        MediaError: The file cannot be read as media.
    """
    options = options or VideoOptions()
    codec = codec_for(target, kind, options)
    if is_address(source) or camera_of(source) is not None:
        return
    suffix = target.suffix.lower()
    with open_input(source) as container:
        check_rate(target, codec, frame_rate(chosen_track(container, source, options.track)))
        unfit = [stream for stream in copied_streams(container, options) if not holds(suffix, stream)]
        elsewhere = {stream.index: fitting_suffixes(stream, kind, options) for stream in unfit}
        unfit = [stream for stream in unfit if elsewhere[stream.index]]
        if unfit:
            suffixes = elsewhere[unfit[0].index]
            better = ".mkv" if ".mkv" in suffixes else suffixes[0]
            kinds = {stream.type for stream in unfit}
            without = [option for kind_, option in _LEAVE_OUT.items() if kind_ in kinds]
            raise UsageError(
                f"{target}: {suffix} cannot hold the {named(unfit[0])} stream of {Path(source).name}; "
                f"use {better}, or {' '.join(without)}"
            )
