"""Run one long video through `basnet-run` and hold resident memory flat: decoding, network, postprocessing, encoding.

Memory is read during the run. From the frame on at which caches and codecs have filled, no reading may lie above
that frame's by more than the limit.

The masks are written as Matroska: an MP4 file's index stands at its end and is kept in memory until then, 75 to 100
bytes a frame, which is the format's own and no leak.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from basnet_benchmarks.breakdown import resident_bytes
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run import run
from basnet_torch.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

_DRAWN_SIZE = (360, 640)
_DRAWN_FRAMES = 250  # one period of the drawn film, which is then repeated packet by packet
_RATE = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Resident memory when `frame` frames were written, `seconds` after the run began."""

    frame: int
    seconds: float
    resident_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakReport:
    """A whole run: `asked` frames of which `frames` came out, flat from the frame `settled` on."""

    asked: int
    settled: int
    limit: float
    frames: int
    seconds: float
    samples: tuple[Sample, ...]

    @property
    def later(self) -> tuple[Sample, ...]:
        """Readings from the settled frame on; the first one is what the others are compared with."""
        return tuple(sample for sample in self.samples if sample.frame >= self.settled)

    @property
    def highest(self) -> Sample:
        """The largest of them."""
        return max(self.later, key=lambda sample: sample.resident_bytes)

    @property
    def growth(self) -> float:
        """By what share the highest reading lies above the settled one."""
        first = self.later[0].resident_bytes
        return (self.highest.resident_bytes - first) / first

    @property
    def failures(self) -> tuple[str, ...]:
        """Each reason it did not pass, in one line; empty when it passed."""
        found = []
        if self.frames != self.asked:
            found.append(f"{self.frames} of {self.asked} frames came out")
        if not self.growth <= self.limit:
            found.append(
                f"memory grew by {self.growth:.1%} after frame {self.later[0].frame}, "
                f"at frame {self.highest.frame}; at most {self.limit:.1%}"
            )
        return tuple(found)


@dataclass(kw_only=True, slots=True)
class SoakWatcher:
    """Reads memory as the run goes."""

    every: int
    samples: list[Sample] = field(default_factory=list)
    _frame: int = 0
    _start: float = field(default_factory=time.perf_counter)

    def started(self, what: str, total: int) -> None:
        """See `basnet_runtime.command.jobs.ProgressListener`."""
        self._start = time.perf_counter()

    def advanced(self) -> None:
        """See `basnet_runtime.command.jobs.ProgressListener`."""
        self._frame += 1
        if self._frame % self.every == 0:
            seconds = time.perf_counter() - self._start
            self.samples.append(Sample(frame=self._frame, seconds=seconds, resident_bytes=resident_bytes()))


def soak(
    folder: Path,
    frames: int = 20_000,
    *,
    settled: int = 1_000,
    every: int = 50,
    limit: float = 0.02,
    source: Path | None = None,
    **options: Any,
) -> SoakReport:
    """Make a video of so many frames, run it, and read memory all along; `options` of `RunConfig`."""
    watcher = SoakWatcher(every=every)
    video = write_source(folder / "soak.mp4", frames, source)
    summary = run(RunConfig(inputs=(str(video),), output=str(folder / "masks.mkv"), **options), watcher)
    if summary.failures:
        raise MediaError(summary.failures[0].error)
    return SoakReport(
        asked=frames,
        settled=settled,
        limit=limit,
        frames=summary.frames,
        seconds=summary.seconds,
        samples=tuple(watcher.samples),
    )


def write_source(target: Path, frames: int, source: Path | None = None) -> Path:
    """A video of exactly `frames` frames: the packets of `source`, or of a drawn film, again and again.

    Raises:
        MediaError: The source is no video, or its frames depend on ones that come later.
    """
    import av

    period = source or _draw_period(target.with_name("period.mp4"))
    options = {"video_track_timescale": str(_RATE * 512)}
    try:
        with av.open(str(period)) as given, av.open(str(target), "w", options=options) as made:
            if not given.streams.video:
                raise MediaError(f"{period}: holds no video")
            stream = made.add_stream_from_template(given.streams.video[0])
            stream.time_base = Fraction(1, _RATE * 512)
            for index, packet in enumerate(_packets(given, frames)):
                packet.stream = stream
                packet.time_base = stream.time_base
                packet.pts = packet.dts = 512 * index
                made.mux(packet)
    except av.FFmpegError as error:
        raise MediaError(f"{period}: its packets cannot be repeated ({error.strerror}); give an H.264 file") from error
    return target


def _packets(container: InputContainer, frames: int) -> Iterator[Any]:
    """Exactly `frames` packets of the first video stream, from its beginning again when it ends."""
    given, in_order = 0, True
    while given < frames:
        before = given
        for packet in container.demux(container.streams.video[0]):
            if packet.size == 0 or given == frames:
                continue
            in_order = in_order and packet.pts == packet.dts
            given += 1
            yield packet
        if given == before or not in_order:
            raise MediaError(f"{container.name}: is empty or holds B-frames; give an H.264 file made with -bf 0")
        container.seek(0)


def _draw_period(path: Path) -> Path:
    """A bright disc that goes round on a moving ground, so that every frame has something to find."""
    import av

    height, width = _DRAWN_SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_RATE, options={"crf": "28", "preset": "ultrafast", "bf": "0"})
        stream.codec_context.width, stream.codec_context.height = width, height
        stream.codec_context.pix_fmt = "yuv420p"
        for index in range(_DRAWN_FRAMES):
            turn = 2 * np.pi * index / _DRAWN_FRAMES
            center = height / 2 + 80 * np.sin(turn), width / 2 + 160 * np.cos(turn)
            disc = (y - center[0]) ** 2 + (x - center[1]) ** 2 < (height / 5) ** 2
            ground = 60 + 40 * np.sin(x / 40 + turn) * np.cos(y / 30)
            image = np.where(disc[..., None], np.array((230, 120, 40), np.float32), ground[..., None]).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
