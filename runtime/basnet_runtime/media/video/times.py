"""Timestamps on one clock: wraps undone, joined recordings in sequence.

    timeline = Timeline(container)
    for packet in container.demux(...):
        timeline.place(packet)  # its times now rise over the whole file

Every reader that gives a `Timeline` the same packets gets the same times: video and sound are read apart, and stay
together.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["FALL_SECONDS", "FrameCount", "TickQueue", "Timeline", "counted_times", "frame_rate", "watched_streams"]

FALL_SECONDS = 1.0  # a smaller step back is disorder within one recording
_NO_TIMES = 0x0080  # AVFMT_NOTIMESTAMPS
_MPEG_FORMATS = {"mpegts", "mpeg"}
_MPEG_WRAP = 1 << 33  # ticks of 90 kHz
_FALLBACK_RATE = Fraction(25)
_NTSC = Fraction(30000, 1001)
_PLAUSIBLE_RATE = 240  # above it an average is doubted where the demuxer's guess says less
_HIGHEST_RATE = 10_000


@dataclass(slots=True)
class _StreamClock:
    """State of one stream.

    Attributes:
        first: Its first time where it began with the file, else None.
        last: Its last decoding time, or its first time where none has come.
        recording: The recording it is in.
        timed: Whether a decoding time has come.
        step: Ticks from the packet before the last one to the last one: how long one lasts that does not say so.
    """

    first: float | None
    last: float
    recording: int
    timed: bool = False
    step: int = 0


def watched_streams(container: InputContainer, video: VideoStream) -> list[Any]:
    """Streams that tell where a recording ends: the video and all sound."""
    return [video, *container.streams.audio]


class Timeline:
    """Rewrites the times of packets in file order.

    Attributes:
        falls: When another recording begins, seconds after the first one did.
        end: End of the video and sound seen, on the new clock, seconds.
        reached: End of anything seen, subtitles too.
    """

    def __init__(self, container: InputContainer) -> None:
        self.falls: list[float] = []
        self.end = self.reached = 0.0
        self._wrap = _MPEG_WRAP if container.format.name in _MPEG_FORMATS else 0
        self._watched = {stream.index for stream in container.streams if stream.type in ("video", "audio")}
        self._offsets = [Fraction(0)]  # of each recording, seconds
        self._clocks: dict[int, _StreamClock] = {}
        self._wraps: dict[int, int] = {}  # what undoes wraps, ticks by stream
        self._now = 0.0

    def place(self, packet: Packet[Any]) -> None:
        """Put one packet on the clock."""
        if packet.dts is None and packet.pts is None:
            return
        watched = packet.stream.index in self._watched
        if self._wrap:
            self._unwrap(packet)
        time_base = packet.time_base
        clock = self._clock_of(packet, float(time_base))
        offset = self._offsets[clock.recording]
        if offset:
            ticks = round(offset / time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        shown = packet.dts if packet.pts is None else packet.pts
        duration = packet.duration or (clock.step if watched else 0)
        end = float(((shown or 0) + duration) * time_base)
        self.reached = max(self.reached, end)
        if watched:
            self._now = clock.last + float(offset)
            self.end = max(self.end, end)

    def _unwrap(self, packet: Packet[Any]) -> None:
        """Undo what a counter of 33 bits does; also where FFmpeg added a turn to a recording that begins earlier."""
        index, tick = packet.stream.index, float(packet.time_base)
        clock = self._clocks.get(index) or next(iter(self._clocks.values()), None)
        wraps = self._wraps.get(index, 0)
        if packet.dts is not None and clock is not None:
            wraps += round((clock.last / tick - (packet.dts + wraps)) / self._wrap) * self._wrap
            self._wraps[index] = wraps
        if wraps:
            packet.dts = None if packet.dts is None else packet.dts + wraps
            packet.pts = None if packet.pts is None else packet.pts + wraps
        if packet.pts is not None and packet.dts is not None:  # one of them may lie beyond the wrap
            packet.pts += round((packet.dts - packet.pts) / self._wrap) * self._wrap

    def _clock_of(self, packet: Packet[Any], tick: float) -> _StreamClock:
        """The packet's stream, in the recording that this packet belongs to."""
        shown = (packet.dts if packet.pts is None else packet.pts) or 0
        clock = self._clocks.get(packet.stream.index)
        newest = len(self._offsets) - 1
        if clock is None:
            recording = self._nearest(shown * tick, range(newest + 1))
            clock = _StreamClock(first=None if newest else shown * tick, last=shown * tick, recording=recording)
            self._clocks[packet.stream.index] = clock
        if packet.dts is None:
            return clock  # a presentation time alone may step back by many frames
        seconds = (packet.dts if packet.pts is None else min(packet.pts, packet.dts)) * tick
        fell = clock.timed and seconds < clock.last - FALL_SECONDS
        if clock.recording < newest:
            clock.recording = self._nearest(seconds, range(clock.recording + fell, newest + 1))
        elif fell and packet.stream.index in self._watched:
            self._begin(clock, shown * tick)
        elif newest and self._was_one_packet(clock, seconds):
            self._offsets.pop()
            self.falls.pop()
            clock.recording = newest - 1
        if clock.timed and not fell and seconds > clock.last:
            clock.step = round((seconds - clock.last) / tick)
        clock.last, clock.timed = seconds, True
        return clock

    def _was_one_packet(self, clock: _StreamClock, seconds: float) -> bool:
        """Whether the last recording was a wrong time of one packet, because the clock before it continues."""
        here, before = (abs(seconds + float(offset) - self._now) for offset in reversed(self._offsets[-2:]))
        alone = all(other is clock or other.recording < clock.recording for other in self._clocks.values())
        return alone and before < FALL_SECONDS < here

    def _nearest(self, seconds: float, recordings: range) -> int:
        """Of several recordings the one in which this time comes next."""
        return min(recordings, key=lambda index: abs(seconds + float(self._offsets[index]) - self._now))

    def _begin(self, clock: _StreamClock, shown: float) -> None:
        """Another recording begins with the packet shown at `shown`, after all that came before.

        The stream that falls first need not be the one that begins first: their distances stay as at the first start.
        """
        firsts = [other.first for index, other in self._clocks.items() if index in self._watched]
        start = min((first for first in firsts if first is not None), default=0.0)
        lead = 0.0 if clock.first is None else clock.first - start
        self._offsets.append(Fraction(round((self.end + lead - shown) * 1_000_000), 1_000_000))
        clock.recording = len(self._offsets) - 1
        self.falls.append(self.end - start)


class TickQueue:
    """Presentation times from decoding times: the earliest left is shown next."""

    def __init__(self) -> None:
        self._ticks: list[int] = []

    def put(self, packet: Packet[Any]) -> None:
        """Take the packet's tick, before it is decoded."""
        if packet.size and packet.dts is not None:
            heapq.heappush(self._ticks, packet.dts)

    def lost(self, packet: Packet[Any]) -> None:
        """The packet gave no frame."""
        if packet.dts in self._ticks:
            self._ticks.remove(packet.dts)
            heapq.heapify(self._ticks)

    def stamp(self, frame: VideoFrame) -> None:
        """Give the next frame its time."""
        frame.pts = heapq.heappop(self._ticks) if self._ticks else None


class FrameCount:
    """Presentation times where a container tells none: one frame after the other."""

    def put(self, packet: Packet[Any]) -> None:
        """Nothing to learn from a packet."""

    def lost(self, packet: Packet[Any]) -> None:
        """A frame that is lost leaves no gap."""

    def stamp(self, frame: VideoFrame) -> None:
        """Take away what the demuxer invented."""
        frame.pts = None


def counted_times(container: InputContainer, stream: VideoStream) -> TickQueue | FrameCount | None:
    """What gives frames their times where the container does not; None where it does."""
    if container.format.flags & _NO_TIMES:
        return FrameCount()
    if container.format.name == "avi" and stream.codec_context.codec.reorder:
        return TickQueue()
    return None


def frame_rate(stream: VideoStream) -> Fraction:
    """Frames per second: the average, the demuxer's guess where absurd, else 25.

    A rate that only its clock gives counts as absurd, because an AVI of 1000 ticks a second may hold 3 frames in them.
    """
    average, guessed = Fraction(stream.average_rate or 0), Fraction(stream.guessed_rate or 0)
    if average > _PLAUSIBLE_RATE and 0 < guessed < average:
        average = guessed
    if 0 < average <= _HIGHEST_RATE:
        return average
    if 0 < guessed <= _HIGHEST_RATE:
        return guessed
    return _NTSC if stream.time_base and stream.time_base.denominator % 30000 == 0 else _FALLBACK_RATE
