"""How long each backend takes for the same network, in one run, each against PyTorch eager FP32 of that run.

report = measure_latency(LatencyConfig(models=("random:64",)))

A time begins with a prepared input on the host and ends with the masks on the host; see `COVERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.candidates import (
    REFERENCE,
    Candidate,
    Choice,
    ModelSource,
    candidates_of,
    parse_choices,
    parse_device,
)
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.measurement import Estimate, Measurement, ratio_estimate
from basnet_benchmarks.rounds import measure_rounds
from basnet_runtime.model import SaliencyModel
from basnet_runtime.threads import allowed_threads
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
    """

    models: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    rounds: int = 10
    calls: int = 3
    warm_up: int = 2
    threads: int | None = None
    backends: tuple[str, ...] = ()
    device: str = "cpu"

    def __post_init__(self) -> None:
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
        backend: Library.
        precision: Arithmetic.
        runs_on: What the backend says of itself.
        width: Channels at full resolution.
        size: Network input height and width.
        measurement: Times.
        ratio: How many times faster than PyTorch eager FP32 with the same network in this run; None without one.
    """

    model: str
    backend: str
    precision: str
    runs_on: str
    width: int
    size: tuple[int, int]
    measurement: Measurement
    ratio: Estimate | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model}, {self.backend} {self.precision}, batch {self.measurement.pictures}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "runs_on": self.runs_on,
            "width": self.width,
            "size": list(self.size),
            "ratio_to_pytorch_fp32": None if self.ratio is None else self.ratio.to_dict(),
            **self.measurement.to_dict(),
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

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the numbers, one line each."""
        own = (f"{row.name}: {warning}" for row in self.rows for warning in row.measurement.warnings)
        return (*self.environment.warnings, *own)

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
                "device": self.config.device,
            },
            "results": [row.to_dict() for row in self.rows],
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
        opened, not_run = _opened(candidates, parse_choices(config.backends), stack, progress)
        rows = [row for batch in config.batches for row in _rows(opened, batch, config, progress)]
    return LatencyReport(config=config, environment=before, rows=tuple(rows), not_run=tuple(not_run))


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
    calls = {candidate.name: partial(model.backend.infer, _batch(model, batch)) for candidate, model in opened}
    measured = measure_rounds(
        calls,
        rounds=config.rounds,
        calls=config.calls,
        warm_up=config.warm_up,
        pictures=batch,
        progress=lambda what: progress(f"batch {batch}: {what}"),
    )
    references = {c.network: measured[c.name] for c, _ in reversed(opened) if c.variant == REFERENCE}
    for candidate, model in opened:
        yield _row(candidate, model, measured[candidate.name], references)


def _row(
    candidate: Candidate,
    model: SaliencyModel,
    measurement: Measurement,
    references: Mapping[tuple[int, int, int], Measurement],
) -> LatencyRow:
    reference = references.get(candidate.network)
    return LatencyRow(
        model=candidate.source.name,
        backend=candidate.variant.backend,
        precision=candidate.variant.precision,
        runs_on=model.backend.description,
        width=candidate.source.width,
        size=candidate.source.size,
        measurement=measurement,
        ratio=ratio_estimate(reference, measurement) if reference else None,
    )


def _batch(model: SaliencyModel, pictures: int) -> NDArray[Any]:
    """Noise as the backend takes it, the same for every candidate; a frame graph gets frames of the network's size."""
    shape = (pictures, model.preprocess.height, model.preprocess.width, 3)
    images_NHWC = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([model.prepare(image_HWC) for image_HWC in images_NHWC])
