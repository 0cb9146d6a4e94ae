"""Latency of every backend on one network, relative to PyTorch eager FP32.

    report = measure_latency(LatencyConfig(models=("random:64",)))

A time begins with a prepared input on the host and ends with the masks on the host; see `COVERS`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from operator import not_
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

from basnet_benchmarks.breakdown import Memory, StageSplit, measure_stages, memory_of
from basnet_benchmarks.candidates import (
    BACKENDS,
    MEASURED_DEVICE,
    REFERENCE,
    THREADS,
    Candidate,
    ModelSource,
    candidates_of,
    noise_batch,
    parse_choices,
    parse_device,
)
from basnet_benchmarks.device_times import DeviceTimes, measure_device, open_device_run
from basnet_benchmarks.environment import Clocks, Environment, clocks, environment
from basnet_benchmarks.statistics import Estimate, Measurement, measure_rounds, ratio_estimate
from basnet_export.samples import BUNDLED
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.model import SaliencyModel
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.files import scratch_folder
from basnet_torch.options import argument, check, option

__all__ = ["COVERS", "LatencyConfig", "LatencyReport", "LatencyRow", "NotRun", "measure_latency"]

COVERS = (
    "the network alone: from a preprocessed input on the host to the masks on the host, copies to a device and back "
    "included; reading files, resizing and postprocessing are not in it, except where a frame graph holds them"
)
_Progress = Callable[[str], None]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"batch {text!r}: give numbers with commas between, as in 1,4") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyConfig:
    """What to time and how; the reference is always timed, for the ratios."""

    models: tuple[str, ...] = field(metadata=argument("MODEL...", ".pth, .safetensors, .onnx, .plan, or random:WIDTH."))
    batches: tuple[int, ...] = field(
        default=(1,), metadata=option("Pictures per call; several sizes with commas.", "--batch", parse=_numbers)
    )
    rounds: int = field(default=10, metadata=option("Turns of each candidate.", min=1))
    calls: int = field(default=3, metadata=option("Timed calls in a turn.", min=1))
    warm_up: int = field(default=2, metadata=option("Calls before the first round.", min=1))
    threads: int | None = field(default=None, metadata=THREADS)
    backends: tuple[str, ...] = field(default=(), metadata=BACKENDS)
    device: Device = field(default=CPU, metadata=MEASURED_DEVICE)
    picture: Path | None = field(
        default=None, metadata=option("Picture to split the whole way with. Default: a photograph.")
    )
    stages: bool = field(default=True, metadata=option("Time the network alone.", "--no-stages", parse=not_))
    memory: bool = field(
        default=True, metadata=option("Start no processes to measure memory.", "--no-memory", parse=not_)
    )
    device_runs: int = 50  # timed by events on a CUDA device; 0 times none

    def __post_init__(self) -> None:
        if self.picture is not None and not self.picture.is_file():
            raise UsageError(f"picture {self.picture}: no such file")
        if not self.models or len({Path(text).name for text in self.models}) < len(self.models):
            raise UsageError(f"models {', '.join(self.models) or 'none'}: give at least one, each under its own name")
        check(self)
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise UsageError(f"batches are {self.batches}; give sizes of at least 1, each once")
        parse_choices(self.backends)
        parse_device(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyRow:
    """One candidate at one batch size."""

    model: str  # name of the model
    fingerprint: str  # which network, see `fingerprint_of`
    backend: str  # library
    precision: str  # arithmetic
    runs_on: str  # what the backend says of itself
    width: int  # channels at full resolution
    size: tuple[int, int]  # network input height and width
    measurement: Measurement  # times
    # how many times faster than the reference with the same network in this run; None without one
    ratio: Estimate | None
    reference: str = ""  # that candidate: PyTorch eager FP32, or an adopted network in ONNX Runtime
    # what it needs in a process of its own; a text where that gave nothing, None where it was not asked
    memory: Memory | str | None = None
    device: DeviceTimes | None = None  # what the device itself takes; None on the CPU
    # as `ratio`, of the computing on the device alone, by its graph where there is one
    device_ratio: float | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """File, library, arithmetic and batch size."""
        return (self.model, self.backend, self.precision, self.measurement.pictures)

    @property
    def name(self) -> str:
        """For people."""
        return "{}, {} {}, batch {}".format(*self.key)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, those of the measurement among them."""
        named = ("model", "fingerprint", "backend", "precision", "runs_on", "width", "size", "device")
        return {
            **{name: getattr(self, name) for name in named},
            "reference": self.reference,
            "ratio_to_reference": self.ratio,
            "ratio_to_pytorch_fp32": None
            if self.reference and not self.reference.endswith(f", {REFERENCE}")
            else self.ratio,
            **{name: getattr(self.measurement, name) for name in Measurement.JSON},
            "memory": self.memory if isinstance(self.memory, Memory) else None,
            "no_memory": self.memory if isinstance(self.memory, str) else "",
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

    JSON: ClassVar = (
        *("command", "covers", "environment", "settings", "results"),
        *("throughput", "stages", "clocks", "not_run", "warnings"),
    )
    command: ClassVar = "latency"
    covers: ClassVar = COVERS
    config: LatencyConfig
    environment: Environment
    results: tuple[LatencyRow, ...]
    not_run: tuple[NotRun, ...]
    stages: tuple[StageSplit, ...] = ()
    clocks: tuple[Clocks, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """How it was timed."""
        named = {name: getattr(self.config, name) for name in ("rounds", "calls", "warm_up")}
        return {**named, "threads": self.environment.threads, "device": str(self.config.device)}

    @property
    def throughput(self) -> list[dict[str, Any]]:
        """Return pictures per second by batch size and candidate, and the best batch."""
        found: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.results:
            rates = found.setdefault(row.key[:3], {})
            rates[str(row.measurement.pictures)] = row.measurement.pictures_per_second
        names = ("model", "backend", "precision")
        return [
            {
                **dict(zip(names, key, strict=True)),
                "pictures_per_second": rates,
                "best_batch": int(max(rates, key=rates.__getitem__)),
            }
            for key, rates in found.items()
        ]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about the numbers, one line each."""
        own = (f"{row.name}: {warning}" for row in self.results for warning in row.measurement.warnings)
        means = [statistics.mean(moment.mhz) for moment in self.clocks if moment.mhz]
        clock = []
        if means and max(means) > 1.1 * min(means):
            clock = [f"the CPU's clock moved between {min(means):.0f} and {max(means):.0f} MHz during the run"]
        return (*self.environment.warnings, *own, *clock)


def measure_latency(config: LatencyConfig, progress: _Progress = lambda _: None) -> LatencyReport:
    """Open all candidates, then time them interleaved, batch size by batch size.

    `progress` is called with what is being done, never while a call is timed.

    Raises:
        BackendUnavailable: A backend that was asked by name, or every one, is not there.
        UsageError: A model's name is none, or a backend runs none of the models.
        BasnetError: A model cannot be read or exported.
    """
    threads = config.threads or allowed_threads()
    before = environment(threads)
    with scratch_folder() as folder, ExitStack() as stack:
        sources = [ModelSource(text, Path(mkdtemp(dir=folder)), progress) for text in config.models]
        candidates = _candidates(sources, config, threads)
        needs = _needs(candidates, config, progress)  # before this process opens them all and takes the memory
        if config.device != CPU and find_spec("torch"):
            import torch

            # cuDNN's algorithms are timed once for each shape, as the other libraries do when they open a model
            torch.backends.cudnn.benchmark = True
        opened, not_run = _opened(candidates, parse_choices(config.backends), stack, progress)
        moments, rows = [clocks()], list[LatencyRow]()
        for batch in config.batches:
            rows += _rows(opened, batch, config, progress)
            moments.append(clocks())
        rows = [replace(row, memory=needs.get(row.key)) for row in rows]
        splits: tuple[StageSplit, ...] = ()
        if config.stages:  # copies from the rows of the smallest batch
            smallest = [row for row in rows if row.measurement.pictures == min(config.batches)]
            timed = {f"{row.model}, {row.backend} {row.precision}": row.device for row in smallest if row.device}
            picture = config.picture or BUNDLED / "coffee.jpg"
            splits = measure_stages(opened, picture, rounds=config.rounds, device_times=timed, progress=progress)
    return LatencyReport(
        config=config,
        environment=before,
        results=tuple(rows),
        not_run=tuple(not_run),
        stages=splits,
        clocks=tuple(moments),
    )


def _needs(
    candidates: Sequence[Candidate], config: LatencyConfig, progress: _Progress
) -> dict[tuple[str, str, str, int], Memory | str]:
    found: dict[tuple[str, str, str, int], Memory | str] = {}
    for candidate, batch in product(candidates, config.batches if config.memory else ()):
        progress(f"memory of {candidate.name}, batch {batch}")
        variant = candidate.variant
        found[candidate.source.name, variant.backend, variant.arithmetic, batch] = memory_of(candidate, batch)
    return found


def _candidates(sources: Sequence[ModelSource], config: LatencyConfig, threads: int) -> list[Candidate]:
    """What was chosen, and before it each model's reference, without which no ratio could be given."""
    chosen = candidates_of(sources, parse_choices(config.backends), config.device, threads)
    needed = [
        Candidate(source=source, variant=source.reference, device=config.device, threads=threads)
        for source in sources
        if source.reference and not any(c.source is source and c.variant == source.reference for c in chosen)
    ]
    return [*needed, *chosen]


def _opened(
    candidates: Sequence[Candidate], choices: Sequence[str], stack: ExitStack, progress: _Progress
) -> tuple[list[tuple[Candidate, SaliencyModel]], list[NotRun]]:
    """What opens, and what does not; a backend that was asked by name must open."""
    opened, not_run = [], []
    for candidate in candidates:
        progress(f"opening {candidate.name}")
        try:
            opened.append((candidate, stack.enter_context(candidate.open())))
        except BackendUnavailable as error:
            if any(candidate.variant.is_asked_by(choice) for choice in choices):  # the added reference was not asked
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
    references = {c.source.network: c.name for c, _ in reversed(opened) if c.variant == c.source.reference}
    for candidate, model in opened:
        name, reference = candidate.name, references.get(candidate.source.network)
        yield LatencyRow(
            model=candidate.source.name,
            fingerprint=candidate.source.fingerprint,
            backend=candidate.variant.backend,
            precision=candidate.variant.arithmetic,
            runs_on=model.backend.description,
            width=candidate.source.width,
            size=candidate.source.size,
            measurement=measured[name],
            ratio=ratio_estimate(measured[reference], measured[name]) if reference else None,
            reference=reference or "",
            device=device[name],
            device_ratio=_device_ratio(device, reference, name),
        )


def _device_times(
    candidate: Candidate, model: SaliencyModel, batch: int, config: LatencyConfig, progress: _Progress
) -> DeviceTimes | None:
    """What the device itself takes, where it is one that has events."""
    if config.device == CPU or not config.device_runs:
        return None
    progress(f"batch {batch}: {candidate.name} by events on the device")
    inputs = noise_batch(model, batch)
    own = getattr(model.backend, "device_times", None)  # as TensorRTBackend has it
    if own is not None:
        milliseconds = own(inputs, config.device_runs)
        return DeviceTimes(compute_s=tuple(ms / 1000 for ms in milliseconds), no_graph="see what runs it")
    run = open_device_run(model, inputs, candidate.device, candidate.path)
    return None if run is None else measure_device(run, config.device_runs)


def _device_ratio(times: Mapping[str, DeviceTimes | None], reference: str | None, name: str) -> float | None:
    """By medians; each candidate by its graph where it has one, the reference as eager PyTorch enqueues it."""
    own, theirs = times[name], times[reference] if reference else None
    if own is None or theirs is None or not theirs.compute_s or not own.compute_s:
        return None
    return statistics.median(theirs.compute_s) / statistics.median(own.graph_s or own.compute_s)
