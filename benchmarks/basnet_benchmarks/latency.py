"""How long each backend takes for the same network, in one run, each against PyTorch eager FP32 of that run.

report = measure_latency(LatencyConfig(models=("random:64",)))

A time begins with a prepared input on the host and ends with the masks on the host; see `COVERS`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from basnet_benchmarks.candidates import (
    REFERENCE,
    Candidate,
    Choice,
    ModelSource,
    candidates_of,
    noise_batch,
    parse_choices,
    parse_device,
)
from basnet_benchmarks.device_times import DeviceTimes, TimedBackend, measure_device, open_device_run
from basnet_benchmarks.environment import Clocks, Environment, clocks, environment
from basnet_benchmarks.measurement import Estimate, Measurement, ratio_estimate
from basnet_benchmarks.memory import Memory, memory_of
from basnet_benchmarks.rounds import measure_rounds
from basnet_benchmarks.stages import StageSplit, default_picture, measure_stages
from basnet_runtime.model import SaliencyModel
from basnet_runtime.threads import allowed_threads
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = ["COVERS", "LatencyConfig", "LatencyReport", "LatencyRow", "NotRun", "measure_latency"]

COVERS = (
    "the network alone: from a prepared input on the host to the masks on the host, copies to a device and back "
    "included; reading files, resizing and finishing are not in it, except where a frame graph holds them"
)
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyConfig:
    """What to time and how.

    Attributes:
        models: Checkpoints, `.onnx` files or `random:WIDTH`.
        batches: Pictures per call, each size measured by itself.
        rounds: Turns of each candidate.
        calls: Timed calls in a turn.
        warm_up: Calls of each candidate before the first round.
        threads: For every backend alike; None takes what the container allows.
        backends: `BACKEND` or `BACKEND:PRECISION`; none takes all. PyTorch FP32 of a checkpoint is always measured.
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
        stages: Whether to take a picture through the whole way, step by step.
        picture: Which; None takes a photograph that comes along.
        memory: Whether to measure memory, each candidate in a process of its own.
        device_runs: Runs that are timed by events on a CUDA device; 0 times none.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    rounds: int = 10
    calls: int = 3
    warm_up: int = 2
    threads: int | None = None
    backends: tuple[str, ...] = ()
    device: Device = CPU
    stages: bool = False
    picture: Path | None = None
    memory: bool = False
    device_runs: int = 50

    def __post_init__(self) -> None:
        if self.picture is not None and not self.picture.is_file():
            raise UsageError(f"picture {self.picture}: no such file")
        if not self.models or len(set(map(_name, self.models))) < len(self.models):
            raise UsageError(f"models {', '.join(self.models) or 'none'}: give at least one, each under its own name")
        for field in ("rounds", "calls", "warm_up"):
            if getattr(self, field) < 1:
                raise UsageError(f"{field} is {getattr(self, field)}; it must be at least 1")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise UsageError(f"batches are {self.batches}; give sizes of at least 1, each once")
        parse_choices(self.backends)
        parse_device(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyRow:
    """One candidate at one batch size.

    Attributes:
        model: Name of the model.
        fingerprint: Which network, see `fingerprint_of`.
        backend: Library.
        precision: Arithmetic.
        runs_on: What the backend says of itself.
        width: Channels at full resolution.
        size: Network input height and width.
        measurement: Times.
        ratio: How many times faster than PyTorch eager FP32 with the same network in this run; None without one.
        memory: What it needs in a process of its own; a text where that gave nothing, None where it was not asked.
        device: What the device itself takes; None on a processor.
        device_ratio: As `ratio`, of the computing on the device alone, by its graph where there is one.
    """

    model: str
    fingerprint: str
    backend: str
    precision: str
    runs_on: str
    width: int
    size: tuple[int, int]
    measurement: Measurement
    ratio: Estimate | None
    memory: Memory | str | None = None
    device: DeviceTimes | None = None
    device_ratio: float | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model}, {self.backend} {self.precision}, batch {self.measurement.pictures}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "backend": self.backend,
            "precision": self.precision,
            "runs_on": self.runs_on,
            "width": self.width,
            "size": list(self.size),
            "ratio_to_pytorch_fp32": None if self.ratio is None else self.ratio.to_dict(),
            **self.measurement.to_dict(),
            "memory": self.memory.to_dict() if isinstance(self.memory, Memory) else None,
            "no_memory": self.memory if isinstance(self.memory, str) else "",
            "device": None if self.device is None else self.device.to_dict(),
            "device_ratio_to_pytorch_fp32": self.device_ratio,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRun:
    """A candidate that could not run, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyReport:
    """A whole run."""

    config: LatencyConfig
    environment: Environment
    rows: tuple[LatencyRow, ...]
    not_run: tuple[NotRun, ...]
    stages: tuple[StageSplit, ...] = ()
    clocks: tuple[Clocks, ...] = ()

    @property
    def throughput(self) -> list[dict[str, Any]]:
        """Pictures per second of each candidate by batch size, and at which it is the most."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.rows:
            by_batch = found.setdefault((row.model, row.backend, row.precision), {})
            by_batch[str(row.measurement.pictures)] = row.measurement.pictures_per_second
        return [
            {
                "model": model,
                "backend": backend,
                "precision": precision,
                "pictures_per_second": rates,
                "best_batch": int(max(rates, key=lambda batch: rates[batch])),
            }
            for (model, backend, precision), rates in found.items()
        ]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the numbers, one line each."""
        own = (f"{row.name}: {warning}" for row in self.rows for warning in row.measurement.warnings)
        return (*self.environment.warnings, *own, *_clock_warnings(self.clocks))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "latency",
            "covers": COVERS,
            "environment": self.environment.to_dict(),
            "settings": {
                "rounds": self.config.rounds,
                "calls": self.config.calls,
                "warm_up": self.config.warm_up,
                "threads": self.environment.threads,
                "device": str(self.config.device),
            },
            "results": [row.to_dict() for row in self.rows],
            "throughput": self.throughput,
            "stages": [split.to_dict() for split in self.stages],
            "clocks": [moment.to_dict() for moment in self.clocks],
            "not_run": [{"name": item.name, "reason": item.reason} for item in self.not_run],
            "warnings": list(self.warnings),
        }


def measure_latency(config: LatencyConfig, progress: _Progress = lambda _: None) -> LatencyReport:
    """Open every candidate, then time all of them against each other, batch size by batch size.

    Args:
        config: What to time.
        progress: Called with what is being done, never while a call is timed.

    Raises:
        BackendUnavailable: A backend that was asked by name, or every one, is not there.
        UsageError: A model's name is none, or a backend runs none of the models.
        BasnetError: A model cannot be read or exported.
    """
    threads = config.threads or allowed_threads()
    before = environment(threads)
    with TemporaryDirectory(prefix="basnet-bench-") as folder, ExitStack() as stack:
        sources = [
            ModelSource(text, _folder(Path(folder), index), progress) for index, text in enumerate(config.models)
        ]
        candidates = _candidates(sources, config, threads)
        needs = _needs(candidates, config, progress)  # before this process opens them all and takes the memory
        if config.device != CPU:
            _let_cudnn_choose()
        opened, not_run = _opened(candidates, parse_choices(config.backends), stack, progress)
        moments, rows = [clocks()], list[LatencyRow]()
        for batch in config.batches:
            rows += _rows(opened, batch, config, progress)
            moments.append(clocks())
        rows = [replace(row, memory=needs.get(_key(row))) for row in rows]
        splits = _splits(opened, rows, config, progress) if config.stages else ()
    return LatencyReport(
        config=config,
        environment=before,
        rows=tuple(rows),
        not_run=tuple(not_run),
        stages=splits,
        clocks=tuple(moments),
    )


def _clock_warnings(moments: Sequence[Clocks]) -> tuple[str, ...]:
    """A clock that moved by more than a tenth between two readings."""
    means = [sum(moment.mhz) / len(moment.mhz) for moment in moments if moment.mhz]
    if not means or max(means) <= 1.1 * min(means):
        return ()
    return (f"the processor's clock moved between {min(means):.0f} and {max(means):.0f} MHz during the run",)


def _key(row: LatencyRow) -> tuple[str, str, str, int]:
    return (row.model, row.backend, row.precision, row.measurement.pictures)


def _needs(
    candidates: Sequence[Candidate], config: LatencyConfig, progress: _Progress
) -> dict[tuple[str, str, str, int], Memory | str]:
    if not config.memory:
        return {}
    found: dict[tuple[str, str, str, int], Memory | str] = {}
    for candidate in candidates:
        for batch in config.batches:
            progress(f"memory of {candidate.name}, batch {batch}")
            variant = candidate.variant
            found[candidate.source.name, variant.backend, variant.arithmetic, batch] = memory_of(candidate, batch)
    return found


def _let_cudnn_choose() -> None:
    """PyTorch then times cuDNN's algorithms once for each shape, as the other libraries do when they open a model."""
    try:
        import torch
    except ImportError:
        return
    torch.backends.cudnn.benchmark = True


def _splits(
    opened: Sequence[tuple[Candidate, SaliencyModel]],
    rows: Sequence[LatencyRow],
    config: LatencyConfig,
    progress: _Progress,
) -> tuple[StageSplit, ...]:
    """The whole way of one picture; copies from the rows of the smallest batch."""
    names = {(c.source.name, str(c.variant.backend), c.variant.arithmetic): c.name for c, _ in opened}
    smallest = min(config.batches)
    timed = {
        names[row.model, row.backend, row.precision]: row.device
        for row in rows
        if row.device is not None and row.measurement.pictures == smallest
    }
    picture = config.picture or default_picture()
    return measure_stages(opened, picture, rounds=config.rounds, device_times=timed, progress=progress)


def _name(text: str) -> str:
    return Path(text).name


def _folder(parent: Path, index: int) -> Path:
    folder = parent / str(index)
    folder.mkdir()
    return folder


def _candidates(sources: Sequence[ModelSource], config: LatencyConfig, threads: int) -> list[Candidate]:
    """What was chosen, and before it the reference of each checkpoint, without which no ratio could be given."""
    chosen = candidates_of(sources, parse_choices(config.backends), config.device, threads)
    needed = [
        Candidate(source=source, variant=REFERENCE, device=config.device, threads=threads)
        for source in sources
        if source.checkpoint and not any(c.source is source and c.variant == REFERENCE for c in chosen)
    ]
    return [*needed, *chosen]


def _opened(
    candidates: Sequence[Candidate], choices: Sequence[Choice], stack: ExitStack, progress: _Progress
) -> tuple[list[tuple[Candidate, SaliencyModel]], list[NotRun]]:
    """What opens, and what does not; a backend that was asked by name must open."""
    opened, not_run = [], []
    for candidate in candidates:
        progress(f"opening {candidate.name}")
        try:
            opened.append((candidate, stack.enter_context(candidate.open())))
        except BackendUnavailable as error:
            if any(choice.holds(candidate.variant) for choice in choices):  # the added reference was not asked
                raise
            not_run.append(NotRun(name=candidate.name, reason=str(error)))
    if not opened:
        raise BackendUnavailable(f"no backend runs the models: {'; '.join(item.reason for item in not_run)}")
    return opened, not_run


def _rows(
    opened: Sequence[tuple[Candidate, SaliencyModel]], batch: int, config: LatencyConfig, progress: _Progress
) -> Iterator[LatencyRow]:
    calls = {candidate.name: partial(model.backend.infer, noise_batch(model, batch)) for candidate, model in opened}
    measured = measure_rounds(
        calls,
        rounds=config.rounds,
        calls=config.calls,
        warm_up=config.warm_up,
        pictures=batch,
        progress=lambda what: progress(f"batch {batch}: {what}"),
    )
    device = {c.name: _device_times(c, model, batch, config, progress) for c, model in opened}
    references = {c.network: c.name for c, _ in reversed(opened) if c.variant == REFERENCE}
    for candidate, model in opened:
        name, reference = candidate.name, references.get(candidate.network)
        row = _row(candidate, model, measured[name], measured[reference] if reference else None)
        yield replace(row, device=device[name], device_ratio=_device_ratio(device, reference, name))


def _device_times(
    candidate: Candidate, model: SaliencyModel, batch: int, config: LatencyConfig, progress: _Progress
) -> DeviceTimes | None:
    """What the device itself takes, where it is one that has events."""
    if config.device == CPU or not config.device_runs:
        return None
    progress(f"batch {batch}: {candidate.name} by events on the device")
    inputs = noise_batch(model, batch)
    if isinstance(model.backend, TimedBackend):
        milliseconds = model.backend.device_times(inputs, config.device_runs)
        return DeviceTimes(compute=tuple(ms / 1000 for ms in milliseconds), no_graph="see what runs it")
    with open_device_run(candidate, model, inputs) as run:
        return None if run is None else measure_device(run, config.device_runs)


def _device_ratio(times: Mapping[str, DeviceTimes | None], reference: str | None, name: str) -> float | None:
    """By medians; each candidate by its graph where it has one, the reference as eager PyTorch enqueues it."""
    own, theirs = times[name], times[reference] if reference else None
    if own is None or theirs is None or not theirs.compute or not own.compute:
        return None
    return statistics.median(theirs.compute) / statistics.median(own.graph or own.compute)


def _row(
    candidate: Candidate, model: SaliencyModel, measurement: Measurement, reference: Measurement | None
) -> LatencyRow:
    return LatencyRow(
        model=candidate.source.name,
        fingerprint=candidate.source.fingerprint,
        backend=candidate.variant.backend,
        precision=candidate.variant.arithmetic,
        runs_on=model.backend.description,
        width=candidate.source.width,
        size=candidate.source.size,
        measurement=measurement,
        ratio=ratio_estimate(reference, measurement) if reference else None,
    )
