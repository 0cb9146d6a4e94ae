"""Small videos for tests, and what a run makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Job
from basnet_runtime.command.run_video import VideoRun, check_video_output
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.run import Pipeline


def images(count: int, shift: int = 0, height: int = 48, width: int = 64) -> list[Any]:
    """A bright square that wanders to the right on a dark ground."""
    out = []
    for i in range(count):
        image = np.full((height, width, 3), 20, np.uint8)
        image[8:24, 4 + shift + i : 20 + shift + i] = (230, 200, 180)
        out.append(image)
    return out


def made(model: SaliencyModel, source: Path, target: Path, kind: str = "mask", **options: Any) -> VideoRun:
    """One video done as `basnet-run` does it, planning included."""
    run = video_run(model, source, target, kind, **options)
    check_video_output(run.job, run.config)
    run.run()
    return run


def job_of(source: Path, target: Path) -> Job:
    """The job of one video file."""
    return Job(source=source, target=target, media="video")


def video_run(
    model: SaliencyModel,
    source: Path,
    target: Path,
    kind: str = "mask",
    *,
    batch: int = 1,
    identity: Any = None,
    advanced: Callable[[], None] = lambda: None,
    pipeline: Any = None,
    **options: Any,
) -> VideoRun:
    """One video to do, as `basnet-run` makes it; `pipeline` and `options` are further arguments of theirs."""
    config = RunConfig(
        inputs=(str(source),),
        kind=OutputKind.parse(kind),
        batch=batch,
        video=VideoOptions(**{"hwaccel": "none", **options}),
    )
    made_of = {"batch": batch, "stream": True, **(pipeline or {})}
    return VideoRun(
        job=job_of(source, target),
        config=config,
        listener=SimpleNamespace(started=lambda *_: None, advanced=advanced),
        model=model,
        pipeline=lambda done, **more: Pipeline(model, Composer(config.kind), on_frame=done, **made_of, **more),
        identity=identity or {},
    )


@dataclass(frozen=True)
class StreamSeen:
    """One stream of a file: its codec and the showing times of its packets, seconds."""

    codec: str
    times: list[float]

    @property
    def packets(self) -> int:
        """Number of them."""
        return len(self.times)


def streams_of(path: Path) -> list[StreamSeen]:
    """Streams with a codec, in file order; times in order of storage."""
    import av

    with av.open(str(path)) as container:
        codecs = {s.index: s.codec_context.codec.canonical_name for s in container.streams if s.codec_context}
        times: dict[int, list[float]] = {index: [] for index in codecs}
        for packet in container.demux():
            if packet.size and packet.stream.index in times and packet.pts is not None:
                times[packet.stream.index].append(float(packet.pts * packet.time_base))
    return [StreamSeen(codec=codec, times=times[index]) for index, codec in codecs.items()]
