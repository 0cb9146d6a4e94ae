"""Latency by step, from picture file to mask file, and memory of a candidate.

    splits = measure_stages(opened, picture, rounds=10)
    memory = memory_of(candidate, pictures=1)

Each round takes every candidate once through the whole way, one step after the other and nothing overlapped, so that
the steps add up; `basnet-run` overlaps them, which `basnet-bench video` measures. Memory is measured in a process that
only opens and runs the candidate, because in one process libraries are shared, and what one candidate frees another
takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from basnet_benchmarks.candidates import Candidate, noise_batch, open_described
from basnet_benchmarks.device_times import DeviceTimes
from basnet_benchmarks.statistics import Estimate, median_estimate, round_order, wait_until_quiet
from basnet_runtime.model import SaliencyModel
from basnet_torch.device import Device
from basnet_torch.errors import MediaError
from basnet_torch.files import scratch_folder

__all__ = ["STEPS", "Memory", "StageSplit", "highest_bytes", "measure_stages", "memory_of", "resident_bytes"]

STEPS = ("decode", "preprocess", "copy_in", "compute", "copy_out", "postprocess", "encode")
_ON_HOST = "copy in is the making of the batch; the library reads it in place and hands over its own result"
_WITHIN = "copies to and from the device are inside compute: this library does not time them apart"
_ON_DEVICE = "copy in and copy out are medians by events on the device, compute is the rest of the backend's call"
_PROC = Path("/proc/self")
_RUNS = 3
_SECONDS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSplit:
    """The steps of one candidate."""

    JSON: ClassVar = ("model", "backend", "precision", "picture", "size", "stages", "total_s", "note")
    model: str  # name of the model
    backend: str  # library
    precision: str  # arithmetic
    picture: str  # name of the picture
    size: tuple[int, int]  # its height and width
    seconds: Mapping[str, tuple[float, ...]]  # step to the seconds of every round
    note: str  # what copies mean here

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """Step to its median and its times."""
        return {step: {"median_s": median_estimate(self.seconds[step]), "raw_s": self.seconds[step]} for step in STEPS}

    @property
    def total_s(self) -> Estimate:
        """Median of the whole way."""
        return median_estimate([sum(times) for times in zip(*(self.seconds[step] for step in STEPS), strict=True)])


def measure_stages(
    opened: Sequence[tuple[Candidate, SaliencyModel]],
    picture: Path,
    *,
    rounds: int,
    device_times: Mapping[str, DeviceTimes] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[StageSplit, ...]:
    """Time the steps of one picture through every candidate, in rounds.

    The first round is a warm-up.

    `device_times` are candidates' copies as events on the device measured them, by name.

    Raises:
        MediaError: The picture cannot be read.
    """
    by_name = {candidate.name: (candidate, model) for candidate, model in opened}
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in by_name}
    size = (0, 0)
    with scratch_folder() as folder:
        for index in range(rounds + 1):
            progress(f"whole way of {picture.name}, round {index} of {rounds}")
            for name in round_order(list(by_name), index):
                wait_until_quiet()
                seconds, size = _once(by_name[name][1], picture, folder / f"{index}-{len(passes[name])}.png")
                passes[name].append(seconds)
    splits = []
    for name, (candidate, _) in by_name.items():
        device = (device_times or {}).get(name)
        times = {step: tuple(one[step] for one in passes[name][1:]) for step in STEPS}
        splits.append(
            StageSplit(
                model=candidate.source.name,
                backend=candidate.variant.backend,
                precision=candidate.variant.arithmetic,
                picture=picture.name,
                size=size,
                seconds=_with_copies(times, device) if device else times,
                note=_ON_HOST if device is None else _ON_DEVICE if device.copy_in_s else _WITHIN,
            )
        )
    return tuple(splits)


def _once(model: SaliencyModel, picture: Path, target: Path) -> tuple[dict[str, float], tuple[int, int]]:
    from basnet_runtime.media.image.pictures import read_picture, write_picture

    postprocess, marks = model.postprocessor(), [time.perf_counter()]

    def done(result: Any) -> Any:
        marks.append(time.perf_counter())
        return result

    frame = done(read_picture(picture))
    prepared = done(model.prepare(frame.flattened()))
    batch = done(np.stack([prepared]))
    raw = done(model.backend.infer(batch))
    mask_HW, _ = done(postprocess(frame, raw[0]))
    write_picture(target, mask_HW, overwrite=True)
    done(target.unlink)()
    timed = (step for step in STEPS if step != "copy_out")
    height, width = frame.image_HWC.shape[:2]
    return {**dict(zip(timed, np.diff(marks).tolist(), strict=True)), "copy_out": 0.0}, (height, width)


def _with_copies(seconds: Mapping[str, tuple[float, ...]], device: DeviceTimes) -> dict[str, tuple[float, ...]]:
    """Copies taken out of the backend's call, as far as they were measured; no step becomes negative."""
    into, out = (float(np.median(times)) if times else 0.0 for times in (device.copy_in_s, device.copy_out_s))
    rest = tuple(max(0.0, second - into - out) for second in seconds["compute"])
    made = tuple(second + into for second in seconds["copy_in"])
    return {**seconds, "copy_in": made, "compute": rest, "copy_out": (out,) * len(rest)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What one candidate needs in a process of its own."""

    before_bytes: int  # resident with this program alone, before the library is loaded
    opened_bytes: int  # resident when the model is ready
    highest_bytes: int  # the most at once, over opening and running
    threads: int  # of the process while it runs, its own included
    device_bytes: int | None = None  # by which the device's free memory fell; None on the CPU


def resident_bytes() -> int:
    """Read the resident memory of this process.

    Raises:
        MediaError: The system does not tell.
    """
    try:
        pages = int((_PROC / "statm").read_text().split()[1])
    except OSError as error:
        raise MediaError("resident memory: this system has no /proc to read it from; measure on Linux") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def highest_bytes() -> int | None:
    """Return the peak resident bytes of this process; None where they are unknown.

    `getrusage` would give the parent's memory too where that was larger when it started this program.
    """
    try:
        lines = (_PROC / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def memory_of(candidate: Candidate, pictures: int) -> Memory | str:
    """Measure a candidate's memory in a process of its own; a text says why not.

    `pictures` are those of a batch.
    """
    order = json.dumps({"candidate": candidate.described(), "pictures": pictures})
    command = (sys.executable, "-m", "basnet_benchmarks.breakdown", order)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        answer = subprocess.run(  # noqa: S603 - this very interpreter, no shell
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {_SECONDS} s"
    if answer.returncode:
        return (answer.stderr.strip().splitlines() or ["no reason given"])[-1][:160]
    return Memory(**json.loads(answer.stdout.splitlines()[-1]))


def _measured(order: dict[str, Any]) -> Memory:
    """Do what the other process is there for."""
    device = Device.parse(order["candidate"]["device"])
    before, free = resident_bytes(), _free_on(device)
    with open_described(order["candidate"]) as model:
        opened = resident_bytes()
        batch = noise_batch(model, order["pictures"])
        for _ in range(_RUNS):
            model.backend.infer(batch)
        threads = sum(1 for _ in (_PROC / "task").iterdir())
        left = _free_on(device)
    taken = None if free is None or left is None else free - left
    highest = highest_bytes() or resident_bytes()
    return Memory(before_bytes=before, opened_bytes=opened, highest_bytes=highest, threads=threads, device_bytes=taken)


def _free_on(device: Device) -> int | None:
    """Free bytes of a CUDA device, where PyTorch is there to ask for them."""
    if device.on_cpu:
        return None
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():  # opening the candidate says why it cannot run
        return None
    free, _ = torch.cuda.mem_get_info(torch.device(device.for_torch()))
    return int(free)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measured(json.loads(sys.argv[1])))) + "\n")
