"""Stream copy: audio, subtitles, tags, chapters and attachments.

Audio and subtitle packets are copied without decoding; attachments, chapters and tags go along where the container has
a place for them, and what has none is named.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from basnet_runtime.media.video.open import av_detail, open_input
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.times import Timeline, watched_streams
from basnet_runtime.media.video.tracks import chosen_track, is_cover, video_tracks
from basnet_runtime.media.video.write.container import (
    copied_streams,
    holds,
    keeps_times_below_zero,
    named,
    takes_packet,
)

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

__all__ = ["FilePassthrough", "LivePassthrough", "NoPassthrough", "PacketCopier", "PassthroughStreams", "copy_tags"]

_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}  # not of what it shows
# What mkvmerge counted in the source's own packets; a language may follow, as in BPS-eng.
_STATISTICS = {"BPS", "DURATION", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES"}
_LIVE_BYTES = 64_000_000


class PassthroughStreams(Protocol):
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


class NoPassthrough:
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


class FilePassthrough:
    """Streams of a file, opened again so that the decoder carries no packets."""

    def __init__(self, path: Path, video: int | None = None) -> None:
        """`video`: index of the stream that is worked on; None takes the default one."""
        self.container: InputContainer | None = open_input(path)
        self.streams = copied_streams(self.container)
        self.warning = ""
        streams = self.container.streams.video
        self._video = next((s for s in streams if s.index == video), None) or chosen_track(self.container, path, None)

    def packets(self) -> Iterator[Packet[Any]]:
        """Packets up to the end or break of the file, on the video reader's clock."""
        from av.error import FFmpegError

        if not self.streams or self.container is None:
            return
        timeline, wanted = Timeline(self.container), {stream.index for stream in self.streams}
        subtitles = [stream for stream in self.streams if stream.type == "subtitle"]
        try:
            for packet in self.container.demux(*watched_streams(self.container, self._video), *subtitles):
                timeline.place(packet)
                if packet.size and packet.stream_index in wanted and packet.dts is not None:
                    yield packet
        except (FFmpegError, OSError) as error:
            self.warning = f"audio is damaged or cut short ({av_detail(error)})"

    def close(self) -> None:
        """Close the file."""
        if self.container is not None:
            self.container.close()


class LivePassthrough:
    """Streams of a network source, fed by its one reader."""

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
    """Copy packets of `PassthroughStreams` into an output in order of time."""

    def __init__(self, passthrough: PassthroughStreams, output: OutputContainer, suffix: str, *, whole: bool) -> None:
        """Create an output stream for each it holds; `warnings` names those it does not.

        `whole`: what is counted in their tags holds for the copies too.
        """
        self.warnings: list[str] = []
        self._passthrough = passthrough
        self._suffix = suffix
        self._outputs: dict[int, Stream] = {}
        self._begun: set[int] = set()
        self._before: dict[int, int] = {}  # time of the packet before, by stream
        self._delayed: set[int] = set()
        for stream in passthrough.streams:
            if not holds(suffix, stream):
                self.warnings.append(f"the {named(stream)} stream is left out; {suffix} cannot hold it")
                continue
            copy = output.add_stream_from_template(stream)
            copy.metadata.update({k: v for k, v in stream.metadata.items() if whole or not _is_statistic(k)})
            copy.disposition = stream.disposition
            self._outputs[stream.index] = copy
            if keeps_times_below_zero(suffix, stream):
                self._delayed.add(copy.index)
        self._packets = passthrough.packets() if self._outputs else iter(())
        self._next: Packet[Any] | None = None

    @property
    def start(self) -> Fraction | None:
        """Start of the first copied stream on the source's clock, if known."""
        starts = [
            stream.start_time * stream.time_base
            for stream in self._passthrough.streams
            if stream.index in self._outputs and stream.start_time is not None and stream.time_base is not None
        ]
        return min(starts, default=None)

    def may_be_below_zero(self, packet: Packet[Any]) -> bool:
        """Whether the output keeps a packet's place before 0."""
        return packet.stream.index in self._delayed

    def until(self, seconds: float, origin: Fraction, *, part: bool) -> Iterator[Packet[Any]]:
        """Packets that start no later than `seconds`, on the output's clock.

        Args:
            seconds: On the output's clock.
            origin: The source's time that is the output's 0.
            part: Whether what comes before that is left out.
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
            if output is None or (part and shift and (packet.pts or 0) < shift):
                continue
            packet.pts = (packet.dts or 0) - shift if packet.pts is None else packet.pts - shift
            packet.dts = (packet.dts or 0) - shift
            if packet.stream.index not in self._begun:
                self._begun.add(packet.stream.index)
                if not takes_packet(self._suffix, packet.stream, packet):
                    self.warnings.append(f"the {named(output)} stream is left out; {self._suffix} refuses its packets")
                    del self._outputs[packet.stream.index]
                    continue
            # Sound that tells no duration, as in Matroska and FLV, lasts as long as the packet before it: .mp4 and .mov
            # cut the last one off.
            index, now = packet.stream.index, packet.dts
            if packet.stream.type == "audio" and not packet.duration:
                packet.duration = max(0, now - self._before.get(index, now))
            self._before[index] = now
            packet.stream = output
            yield packet

    def close(self) -> None:
        """Give the source back."""
        self._passthrough.close()
        if self._passthrough.warning:
            self.warnings.append(self._passthrough.warning)


def copy_tags(
    passthrough: PassthroughStreams,
    source_video: int,
    output: OutputContainer,
    video: VideoStream,
    suffix: str,
    options: VideoOptions,
) -> list[str]:
    """Copy tags, chapters and attachments; returns what has no place.

    Args:
        passthrough: Of the source.
        source_video: Index of the stream that is worked on.
        output: Before its header is written.
        video: Its video stream.
        suffix: The output's.
        options: What the user wants; chapters of a part would lie.
    """
    source, whole = passthrough.container, options.span.start is None
    if source is None:
        return []
    output.metadata.update(_kept(source.metadata))
    tags = _kept(source.streams[source_video].metadata)
    video.metadata.update({key: value for key, value in tags.items() if not _is_statistic(key)})
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
    return notes + list(_left_out(source, video, suffix, options))


def _left_out(source: InputContainer, video: VideoStream, suffix: str, options: VideoOptions) -> Iterator[str]:
    """What of the source has no place in any output."""
    tracks = len(video_tracks(source)) - 1
    if tracks:
        yield f"further video tracks are left out: {tracks}; --video-track chooses another"
    if covers := sum(is_cover(stream) for stream in source.streams.video):
        yield f"cover pictures are left out: {covers}"
    wanted = [
        *(source.streams.audio if options.sound else ()),
        *(source.streams.subtitles if options.subtitles else ()),
    ]
    unknown = Counter(stream.type for stream in wanted if getattr(stream, "codec_context", None) is None)
    for kind, count in unknown.items():
        yield f"{kind} streams of an unknown codec are left out: {count}"
    # A time code is a tag of the video, of which the muxer makes a stream again; so are chapters.
    kept = "timecode" in video.metadata and suffix in (".mp4", ".mov")
    data = [stream for stream in source.streams.data if not (kept and "timecode" in stream.metadata)]
    # The text track in which QuickTime keeps the names of chapters, which are distinct from it.
    chapters = len(source.chapters())
    data = [
        stream
        for stream in data
        if not (chapters == stream.frames > 0 and getattr(stream, "codec_context", None) is None)
    ]
    if data:
        yield f"{len(data)} data streams (such as camera telemetry) are left out"


def _is_statistic(key: str) -> bool:
    name = key.upper()
    return name.startswith("_STATISTICS") or name.partition("-")[0] in _STATISTICS


def _kept(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.lower() not in _OF_THE_FILE}
