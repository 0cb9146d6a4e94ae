"""Where the time of one picture goes, from file to file, for each candidate, in the steps of `STEPS`.

splits = measure_stages(opened, picture, rounds=10)

Each round takes every candidate once through the whole way, one step after the other and nothing overlapped, so that
the steps add up. `basnet-run` overlaps decoding, network and encoding: `basnet-bench video` measures that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from basnet_benchmarks.candidates import Candidate
from basnet_benchmarks.device_times import DeviceTimes
from basnet_benchmarks.measurement import median_estimate
from basnet_benchmarks.rounds import round_order, wait_until_quiet
from basnet_runtime.model import SaliencyModel

__all__ = ["STEPS", "StageSplit", "default_picture", "measure_stages"]

STEPS = ("decode", "prepare", "copy_in", "compute", "copy_out", "finish", "encode")
_ON_HOST = "copy in is the making of the batch; the library reads it in place and hands over its own result"
_WITHIN = "copies to and from the device are inside compute: this library does not time them apart"
_ON_DEVICE = "copy in and copy out are medians by events on the device, compute is the rest of the backend's call"
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSplit:
    """One candidate.

    Attributes:
        model: Name of the model.
        backend: Library.
        precision: Arithmetic.
        picture: Name of the picture.
        size: Its height and width.
        seconds: Step to the seconds of every round.
        note: What copies mean here.
    """

    model: str
    backend: str
    precision: str
    picture: str
    size: tuple[int, int]
    seconds: Mapping[str, tuple[float, ...]]
    note: str

    @property
    def totals(self) -> tuple[float, ...]:
        """Seconds from file to file, of every round."""
        return tuple(map(sum, zip(*(self.seconds[step] for step in STEPS), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = {
            step: {"median_s": median_estimate(self.seconds[step]).to_dict(), "raw_s": list(self.seconds[step])}
            for step in STEPS
        }
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "picture": self.picture,
            "size": list(self.size),
            "stages": stages,
            "total_s": median_estimate(self.totals).to_dict(),
            "note": self.note,
        }


def default_picture() -> Path:
    """One of the photographs that come along."""
    from basnet_export.samples import BUNDLED

    return BUNDLED / "coffee.jpg"


def measure_stages(
    opened: Sequence[tuple[Candidate, SaliencyModel]],
    picture: Path,
    *,
    rounds: int,
    device_times: Mapping[str, DeviceTimes] | None = None,
    progress: _Progress = lambda _: None,
) -> tuple[StageSplit, ...]:
    """Take the picture through every candidate, round by round.

    Args:
        opened: Candidates with their models.
        picture: A picture file.
        rounds: How often; one more comes before and is not counted.
        device_times: Candidates' copies as events on the device measured them, by name.
        progress: Called between passes.

    Raises:
        MediaError: The picture cannot be read.
    """
    by_name = {candidate.name: (candidate, model) for candidate, model in opened}
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in by_name}
    size = (0, 0)
    with TemporaryDirectory(prefix="basnet-bench-") as folder:
        for index in range(rounds + 1):
            progress(f"whole way of {picture.name}, round {index} of {rounds}")
            for name in round_order(list(by_name), index):
                wait_until_quiet()
                seconds, size = _once(by_name[name][1], picture, Path(folder) / f"{index}-{len(passes[name])}.png")
                passes[name].append(seconds)
    known = device_times or {}
    return tuple(
        _split(candidate, passes[name][1:], picture.name, size, known.get(name))
        for name, (candidate, _) in by_name.items()
    )


def _once(model: SaliencyModel, picture: Path, target: Path) -> tuple[dict[str, float], tuple[int, int]]:
    from basnet_runtime.finish import Finisher
    from basnet_runtime.media.pictures import read_picture, write_picture

    seconds: dict[str, float] = {}
    finish = Finisher(model)
    with _step(seconds, "decode"):
        frame = read_picture(picture)
    with _step(seconds, "prepare"):
        prepared = model.prepare(frame.flattened())
    with _step(seconds, "copy_in"):
        batch = np.stack([prepared])
    with _step(seconds, "compute"):
        raw = model.backend.infer(batch)
    with _step(seconds, "finish"):
        mask_HW, _ = finish(frame, raw[0])
    with _step(seconds, "encode"):
        write_picture(target, mask_HW, overwrite=True)
    target.unlink()
    height, width = frame.image_HWC.shape[:2]
    return {**seconds, "copy_out": 0.0}, (height, width)


@contextmanager
def _step(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _split(
    candidate: Candidate,
    passes: Sequence[Mapping[str, float]],
    picture: str,
    size: tuple[int, int],
    device: DeviceTimes | None,
) -> StageSplit:
    seconds = {step: tuple(one[step] for one in passes) for step in STEPS}
    if device is not None:
        seconds = _with_copies(seconds, device)
    return StageSplit(
        model=candidate.source.name,
        backend=candidate.variant.backend,
        precision=candidate.variant.arithmetic,
        picture=picture,
        size=size,
        seconds=seconds,
        note=_note(device),
    )


def _note(device: DeviceTimes | None) -> str:
    if device is None:
        return _ON_HOST
    return _ON_DEVICE if device.copy_in else _WITHIN


def _with_copies(seconds: Mapping[str, tuple[float, ...]], device: DeviceTimes) -> dict[str, tuple[float, ...]]:
    """Copies taken out of the backend's call, as far as they were measured; no step becomes negative."""
    into, out = (float(np.median(times)) if times else 0.0 for times in (device.copy_in, device.copy_out))
    rest = tuple(max(0.0, second - into - out) for second in seconds["compute"])
    made = tuple(second + into for second in seconds["copy_in"])
    return {**seconds, "copy_in": made, "compute": rest, "copy_out": (out,) * len(rest)}
