"""Whether memory stays flat while the whole pipeline runs for a long time: decoding, network, finishing, encoding.

report = measure_soak(SoakConfig(frames=20_000))
raise SystemExit(report.exit_code)

One video of as many frames runs through `basnet-run`'s own code. Resident memory is read while it runs; from the frame
on at which caches and codecs have filled, no reading may lie above that frame's by more than the limit.

The masks are written as Matroska: an MP4 file's index stands at its end and is kept in memory until then, 75 to 100
bytes a frame, which is the format's own and no leak.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.memory import resident_bytes
from basnet_runtime.backends.base import BackendName, Precision
from basnet_runtime.media.compose import OutputKind
from basnet_runtime.run import RunConfig, Summary, run
from basnet_torch.errors import MediaError, UsageError

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["Sample", "SoakConfig", "SoakReport", "SoakWatcher", "measure_soak", "write_source"]

SOAK_FAILED = 4
_DRAWN_SIZE = (360, 640)
_DRAWN_FRAMES = 250  # one period of the drawn film, which is then repeated packet by packet
_RATE = 25
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakConfig:
    """What to run and for how long.

    Attributes:
        frames: How many.
        settled: From this frame on memory must stay flat.
        every: Frames between two readings.
        limit: Share by which memory may lie above that of the frame `settled`.
        source: A video, repeated until there are enough frames; None draws one of 640 x 360.
        model: Model file; None runs the built-in model.
        kind: What is made of each mask, as `basnet-run --kind` says it.
        batch: Frames per network run.
        backend: Library to run with; None chooses.
        precision: What to compute in; None takes the model's own.
        threads: Processor threads for the network; None takes what the container allows.
        device: `cpu`, `openvino`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
    """

    frames: int = 20_000
    settled: int = 1_000
    every: int = 50
    limit: float = 0.02
    source: Path | None = None
    model: Path | None = None
    kind: str = "mask"
    batch: int = 1
    backend: BackendName | None = None
    precision: Precision | None = None
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.every < 1 or self.settled < self.every:
            raise UsageError(
                f"settled is {self.settled} and every {self.every}; both must be at least 1, every no more"
            )
        if self.frames < 2 * self.settled:
            raise UsageError(f"frames is {self.frames}; it must be at least twice settled, which is {self.settled}")
        if not 0 < self.limit < 1:
            raise UsageError(f"limit is {self.limit}; it must be a share in 0..1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Resident memory when `frame` frames were written, `seconds` after the first reading."""

    frame: int
    seconds: float
    resident_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"frame": self.frame, "seconds": self.seconds, "resident_bytes": self.resident_bytes}


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakReport:
    """A whole run.

    Attributes:
        config: What was run.
        model: Name of the model.
        runs_on: What really ran.
        source: Name of the video.
        environment: Where.
        frames: Frames written.
        seconds: How long it took.
        samples: Readings in order.
        cpu_by_stage: Processor seconds.
    """

    config: SoakConfig
    model: str
    runs_on: str
    source: str
    environment: Environment
    frames: int
    seconds: float
    samples: tuple[Sample, ...]
    cpu_by_stage: dict[str, float]

    @property
    def settled(self) -> Sample:
        """The reading that later ones are compared with."""
        return next(sample for sample in self.samples if sample.frame >= self.config.settled)

    @property
    def highest(self) -> Sample:
        """The largest reading from there on."""
        later = [sample for sample in self.samples if sample.frame >= self.config.settled]
        return max(later, key=lambda sample: sample.resident_bytes)

    @property
    def growth(self) -> float:
        """By what share the highest reading lies above the settled one."""
        return (self.highest.resident_bytes - self.settled.resident_bytes) / self.settled.resident_bytes

    @property
    def slope(self) -> float:
        """Bytes by which memory grows with each frame from there on, by least squares."""
        later = [sample for sample in self.samples if sample.frame >= self.config.settled]
        if len(later) < 2:
            return 0.0
        frames, resident = ([getattr(s, name) for s in later] for name in ("frame", "resident_bytes"))
        return float(np.polyfit(frames, resident, 1)[0])

    @property
    def failures(self) -> tuple[str, ...]:
        """Each reason it did not pass, in one line; empty when it passed."""
        found = []
        if self.frames != self.config.frames:
            found.append(f"{self.frames} of {self.config.frames} frames came out")
        if not self.growth <= self.config.limit:
            found.append(
                f"memory grew by {self.growth:.1%} after frame {self.settled.frame}, "
                f"at frame {self.highest.frame}; at most {self.config.limit:.1%}"
            )
        return tuple(found)

    @property
    def exit_code(self) -> int:
        """4 when it failed, else 0."""
        return SOAK_FAILED if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "soak",
            "model": self.model,
            "runs_on": self.runs_on,
            "source": self.source,
            "kind": self.config.kind,
            "environment": self.environment.to_dict(),
            "frames_asked": self.config.frames,
            "frames": self.frames,
            "seconds": self.seconds,
            "frames_per_second": self.frames / self.seconds if self.seconds > 0 else 0.0,
            "settled_frame": self.settled.frame,
            "settled_bytes": self.settled.resident_bytes,
            "highest_frame": self.highest.frame,
            "highest_bytes": self.highest.resident_bytes,
            "last_bytes": self.samples[-1].resident_bytes,
            "growth": self.growth,
            "bytes_per_frame": self.slope,
            "limit": self.config.limit,
            "passed": not self.failures,
            "failures": list(self.failures),
            "samples": [sample.to_dict() for sample in self.samples],
            "cpu_seconds_by_stage": self.cpu_by_stage,
        }


@dataclass(kw_only=True, slots=True)
class SoakWatcher:
    """Reads memory as the run goes; `read` is replaced in tests."""

    every: int
    progress: _Progress = lambda _: None
    read: Callable[[], int] = resident_bytes
    samples: list[Sample] = field(default_factory=list)
    _frame: int = 0
    _start: float = field(default_factory=time.perf_counter)

    def started(self, what: str, total: int) -> None:  # noqa: ARG002 - as the protocol has it
        """See `basnet_runtime.run.Watcher`."""
        self._start = time.perf_counter()

    def advanced(self) -> None:
        """See `basnet_runtime.run.Watcher`."""
        self._frame += 1
        if self._frame % self.every:
            return
        seconds, resident = time.perf_counter() - self._start, self.read()
        self.samples.append(Sample(frame=self._frame, seconds=seconds, resident_bytes=resident))
        if len(self.samples) % 20 == 0:
            self.progress(f"frame {self._frame}: {resident / 1e6:.1f} MB resident")


def measure_soak(config: SoakConfig, progress: _Progress = lambda _: None) -> SoakReport:
    """Make the video, run it, and read memory all along.

    Raises:
        MediaError: The video cannot be read, or the system does not tell resident memory.
        BasnetError: The model cannot be opened or run.
    """
    resident_bytes()  # refuses now, not after minutes
    before = environment(config.threads)
    watcher = SoakWatcher(every=config.every, progress=progress)
    with TemporaryDirectory(prefix="basnet-bench-") as folder:
        progress(f"writing a video of {config.frames} frames")
        video = write_source(Path(folder) / "soak.mp4", config.frames, config.source)
        summary = _run(config, video, Path(folder) / "out", watcher)
    return SoakReport(
        config=config,
        model=summary.model,
        runs_on=summary.runs_on,
        source=config.source.name if config.source else "drawn video of 640x360",
        environment=before,
        frames=summary.frames,
        seconds=summary.seconds,
        samples=tuple(watcher.samples),
        cpu_by_stage={stage: cpu for stage, (_, cpu) in summary.seconds_by_stage.items()},
    )


def _run(config: SoakConfig, video: Path, out: Path, watcher: SoakWatcher) -> Summary:
    out.mkdir()
    summary = run(
        RunConfig(
            inputs=(str(video),),
            output=str(out / "masks.mkv"),
            kind=OutputKind.parse(config.kind),
            model=config.model,
            backend=config.backend,
            device=config.device,
            threads=config.threads,
            precision=config.precision,
            batch=config.batch,
        ),
        watcher,
    )
    if summary.failures:
        raise MediaError(summary.failures[0].error)
    if not any(sample.frame >= config.settled for sample in watcher.samples):
        raise MediaError(f"{video.name}: gave {summary.frames} frames, too few to judge memory by")
    return summary


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
            centre = height / 2 + 80 * np.sin(turn), width / 2 + 160 * np.cos(turn)
            disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (height / 5) ** 2
            ground = 60 + 40 * np.sin(x / 40 + turn) * np.cos(y / 30)
            image = np.where(disc[..., None], np.array((230, 120, 40), np.float32), ground[..., None]).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
