"""Everything in a media file beside its video: which of it a result's container holds, and copying it unchanged.

Audio and subtitle packets are copied without decoding, times included; attachments, chapters and tags go along where
the container has a place for them, and what has none is named.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from basnet_runtime.media.compose import OutputKind
from basnet_runtime.media.video_encoder import codec_for, holds_codec
from basnet_runtime.media.video_open import av_detail, camera_of, is_address, open_input
from basnet_runtime.media.video_options import VideoOptions
from basnet_torch.errors import MediaError, UsageError

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = [
    "FORMATS",
    "FileSide",
    "LiveSide",
    "NoSide",
    "PacketCopier",
    "Side",
    "check_output",
    "copied_streams",
    "copy_tags",
    "default_suffix",
]

FORMATS = {".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".webm": "webm"}
# What players open, which is less than what the muxer writes: it puts Vorbis and PCM in .mp4 too.
_MP4_CODECS = {"aac", "ac3", "alac", "eac3", "flac", "mov_text", "mp2", "mp3", "opus"}
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}  # not of what it shows
_LIVE_BYTES = 64_000_000


def default_suffix(source: Path, kind: OutputKind, options: VideoOptions | None = None) -> str:
    """The container for a video's result that holds its audio and subtitles: .mp4 where it can, then .mov, then .mkv.

    Args:
        source: The video.
        kind: What is made of it.
        options: The user's choices; not every container holds every codec.

    Raises:
        MediaError: The file cannot be read as media, or no container holds both transparency and the audio.
    """
    options = options or VideoOptions()
    codec = options.codec
    usual = (".mov", ".webm") if kind.has_alpha else (".mp4", ".mov", ".mkv")
    fitting = [suffix for suffix in (*usual, ".mkv") if codec is None or holds_codec(suffix, codec, kind)]
    candidates = usual if codec is None or not fitting else fitting
    with open_input(source) as container:
        names = _names(copied_streams(container)) if options.sound else []
    for suffix in candidates:
        if not _unfit(names, suffix):
            return suffix
    asked = f" and {codec}" if codec else ""
    clear = " with transparency" if kind.has_alpha else ""
    raise MediaError(
        f"{source}: no usual container{clear} holds its {' and '.join(names)} stream{asked}; "
        "write a .mkv (--codec ffv1) or frames/%06d.png, or leave the sound out (--no-sound)"
    )


def check_output(source: Path | str, target: Path, kind: OutputKind, options: VideoOptions | None = None) -> None:
    """Refuse a container or codec that cannot hold the result of `source`; of a stream only its name is known yet.

    Raises:
        UsageError: With the suffixes or codecs that can.
        MediaError: The file cannot be read as media.
    """
    options = options or VideoOptions()
    codec_for(target, kind, options)
    if not options.sound or is_address(source) or camera_of(source) is not None:
        return
    suffix = target.suffix.lower()
    with open_input(source) as container:
        unfit = _unfit(_names(copied_streams(container)), suffix)
    if unfit:
        where = f"{target}: {suffix} cannot hold the {unfit[0]} stream of {Path(source).name}"
        raise UsageError(f"{where}; use .mkv, or --no-sound")


def copied_streams(container: InputContainer) -> list[Stream]:
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
    with av.open(io.BytesIO(), "w", format=FORMATS[suffix]) as container:
        return frozenset(container.supported_codecs) - ({"vorbis"} if suffix == ".mov" else set())


class Side(Protocol):
    """Where the packets beside the video come from.

    Attributes:
        streams: Audio and subtitles.
        container: The open input, for tags, chapters and attachments; None for a camera.
        warning: What went wrong on the way; empty when nothing did.
    """

    streams: list[Stream]
    container: InputContainer | None
    warning: str

    def packets(self) -> Iterator[Packet[Any] | None]:
        """Packets in order of time; None where more may come later."""

    def close(self) -> None:
        """Close what was opened for it."""


class NoSide:
    """A camera: nothing but pictures."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.container: InputContainer | None = None
        self.warning = ""

    def packets(self) -> Iterator[Packet[Any] | None]:
        """None at all."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


class FileSide:
    """Of a file. It is opened a second time, so that the decoder need not carry packets along."""

    def __init__(self, path: Path) -> None:
        self.container: InputContainer | None = open_input(path)
        self.streams = copied_streams(self.container)
        self.warning = ""

    def packets(self) -> Iterator[Packet[Any] | None]:
        """Packets up to the end or the break of the file."""
        from av.error import FFmpegError

        if not self.streams or self.container is None:
            return
        try:
            for packet in self.container.demux(*self.streams):
                if packet.size and packet.dts is not None:
                    yield packet
        except (FFmpegError, OSError) as error:
            self.warning = f"audio is damaged or cut short ({av_detail(error)})"

    def close(self) -> None:
        """Close the file."""
        if self.container is not None:
            self.container.close()


class LiveSide:
    """Of a network stream, which cannot be opened twice: its reader puts here what is not video."""

    def __init__(self, container: InputContainer) -> None:
        self.container: InputContainer | None = container
        self.streams = copied_streams(container)
        self.warning = ""
        self._waiting: deque[Packet[Any]] = deque()
        self._bytes = 0

    def put(self, packet: Packet[Any]) -> None:
        """Keep a packet; called in the reader's thread."""
        if not packet.size or packet.dts is None:
            return
        if self._bytes + packet.size > _LIVE_BYTES:
            self.warning = "audio came so far ahead of the pictures that some of it is left out"
            return
        self._bytes += packet.size
        self._waiting.append(packet)

    def packets(self) -> Iterator[Packet[Any] | None]:
        """Packets that have come; None while there is none."""
        while True:
            if not self._waiting:
                yield None
                continue
            packet = self._waiting.popleft()
            self._bytes -= packet.size
            yield packet

    def close(self) -> None:
        """The reader closes the stream."""


class PacketCopier:
    """Copies the packets of a `Side` into an output, each when its time has come."""

    def __init__(self, side: Side, output: OutputContainer, suffix: str) -> None:
        """Make a stream in the output for each that it holds; `warnings` names those that it does not."""
        self.warnings: list[str] = []
        self._side = side
        self._outputs = {}
        for stream in side.streams:
            name = _names([stream])[0]
            if _unfit([name], suffix):
                self.warnings.append(f"{suffix} cannot hold the {name} stream, which is left out; .mkv can")
                continue
            copy = output.add_stream_from_template(stream)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            self._outputs[stream.index] = copy
        self._packets = side.packets() if self._outputs else iter(())
        self._next: Packet[Any] | None = None

    def until(self, seconds: float, origin: Fraction = Fraction(0)) -> Iterator[Packet[Any]]:
        """Packets that start no later than `seconds`, ready for the output.

        Args:
            seconds: On the output's clock.
            origin: The source's time that is the output's 0; packets before it are left out.
        """
        while True:
            packet = self._next or next(self._packets, None)
            self._next = None
            if packet is None:
                return
            shift = round(origin / packet.time_base) if origin else 0
            if float(((packet.dts or 0) - shift) * packet.time_base) > seconds:
                self._next = packet
                return
            output = self._outputs.get(packet.stream_index)
            if output is None or (shift and (packet.pts or 0) < shift):
                continue
            if shift:
                packet.pts, packet.dts = (packet.pts or 0) - shift, (packet.dts or 0) - shift
            packet.stream = output
            yield packet

    def close(self) -> None:
        """Give the source back."""
        self._side.close()
        if self._side.warning:
            self.warnings.append(self._side.warning)


def copy_tags(
    side: Side, source_video: int, output: OutputContainer, video: VideoStream, suffix: str, *, whole: bool
) -> list[str]:
    """Take tags, chapters and attachments along; returns what has no place in the output.

    Args:
        side: Of the source.
        source_video: Index of the stream that is worked on.
        output: Before its header is written.
        video: Its video stream.
        suffix: The output's.
        whole: Whether the result begins where the source does; chapters of a part would lie.
    """
    source = side.container
    if source is None:
        return []
    output.metadata.update(_kept(source.metadata))
    video.metadata.update(_kept(source.streams[source_video].metadata))
    if not whole:
        video.metadata.pop("timecode", None)  # it is that of the source's first frame
    notes = []
    if chapters := source.chapters():
        if whole and suffix != ".webm":
            output.set_chapters(chapters)
        else:
            notes.append(f"{len(chapters)} chapters are left out")
    for stream in source.streams.attachments:
        if suffix == ".mkv":
            name, kind = stream.metadata.get("filename", "attachment"), stream.mimetype or "application/octet-stream"
            output.add_attachment(name, kind, stream.data)
        else:
            notes.append(f"the attachment {stream.metadata.get('filename', '')} is left out; .mkv can hold it")
    others = len(source.streams.video) - 1
    if others > 0:
        notes.append(f"{others} further video or cover streams are left out")
    # A time code is a tag of the video, of which the muxer makes a stream again.
    kept = "timecode" in video.metadata and suffix in (".mp4", ".mov")
    data = [stream for stream in source.streams.data if not (kept and "timecode" in stream.metadata)]
    if data:
        notes.append(f"{len(data)} data streams (such as camera telemetry) are left out")
    return notes


def _kept(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.lower() not in _OF_THE_FILE}
