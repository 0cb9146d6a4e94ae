"""How much a model's masks move by themselves: the floor below which a difference says nothing about a change.

report = measure_noise(NoiseConfig(model="basnet.onnx"))

Each candidate's masks are compared with its own first ones: run again, opened again, built again from the checkpoint,
with another number of threads, and in a batch with other pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.candidates import Candidate, ModelSource, candidates_of, parse_choices, parse_device
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import Difference, Picture, difference, worst_of
from basnet_runtime.threads import allowed_threads
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = ["WHAT", "NoiseConfig", "NoiseReport", "NoiseRow", "measure_noise"]

Float32 = NDArray[np.float32]
WHAT = ("run again", "opened again", "other threads", "in a batch of 2", "built again")
_Progress = Callable[[str], None]
_Masks = Mapping[str, Float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseConfig:
    """What to repeat.

    Attributes:
        model: Checkpoint, `.onnx` or plan.
        pictures: Folder of pictures or data set; None takes the bundled photographs.
        times: How often to run and to open again.
        threads: Processor threads; None takes what the container allows.
        backends: `BACKEND` or `BACKEND:PRECISION`; none takes all.
        device: `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`.
    """

    model: str
    pictures: Path | None = None
    times: int = 3
    threads: int | None = None
    backends: tuple[str, ...] = ()
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise UsageError(f"times is {self.times}; it must be at least 1")
        parse_choices(self.backends)
        parse_device(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseRow:
    """One candidate with one way of repeating.

    Attributes:
        name: Of the candidate.
        what: How it was repeated, one of `WHAT`.
        differences: Every picture of every repetition; empty where it did not run.
        reason: Why it did not run.
    """

    name: str
    what: str
    differences: tuple[Difference, ...] = ()
    reason: str = ""

    @property
    def deterministic(self) -> bool:
        """Whether not one value of one mask moved."""
        return bool(self.differences) and all(row.max_abs == 0 for row in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values, worst = worst_of(self.differences) if self.differences else (None, None)
        return {
            "name": self.name,
            "what": self.what,
            "comparisons": len(self.differences),
            "measures": values,
            "worst": worst,
            "deterministic": self.deterministic,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseReport:
    """A whole run."""

    model: str
    pictures: str
    count: int
    environment: Environment
    rows: tuple[NoiseRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "noise",
            "model": self.model,
            "pictures": self.pictures,
            "count": self.count,
            "environment": self.environment.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
        }


def measure_noise(config: NoiseConfig, progress: _Progress = lambda _: None) -> NoiseReport:
    """Repeat every candidate in every way that it has.

    Raises:
        BackendUnavailable: None of the backends is there.
        BasnetError: The model or a picture cannot be read.
    """
    threads = config.threads or allowed_threads()
    source_of_pictures = Pictures(config.pictures)
    pictures = list(source_of_pictures)
    with TemporaryDirectory(prefix="basnet-bench-") as folder:
        sources = [_source(config.model, Path(folder) / name, progress) for name in ("first", "again")]
        rows: list[NoiseRow] = []
        for candidate in candidates_of(sources[:1], parse_choices(config.backends), config.device, threads):
            progress(f"repeating {candidate.name}")
            rows += _rows(candidate, sources[1], pictures, config.times)
    if not any(row.differences for row in rows):
        raise BackendUnavailable(f"no backend runs {config.model}: {'; '.join(row.reason for row in rows)}")
    return NoiseReport(
        model=sources[0].name,
        pictures=source_of_pictures.name,
        count=len(pictures),
        environment=environment(threads),
        rows=tuple(rows),
    )


def _source(text: str, folder: Path, progress: _Progress) -> ModelSource:
    folder.mkdir()
    return ModelSource(text, folder, progress)


def _rows(candidate: Candidate, again: ModelSource, pictures: Sequence[Picture], times: int) -> Iterator[NoiseRow]:
    try:
        with candidate.open() as model:
            first = _masks(model, pictures)
            yield _row(candidate, WHAT[0], first, (_masks(model, pictures) for _ in range(times)))
            yield _row(candidate, WHAT[3], first, (_in_a_batch(model, pictures),))
    except BackendUnavailable as error:
        yield NoiseRow(name=candidate.name, what=WHAT[0], reason=str(error))
        return
    yield _row(candidate, WHAT[1], first, (_opened(candidate, pictures) for _ in range(times)))
    if candidate.device == "cpu":
        other = replace(candidate, threads=1 if candidate.threads > 1 else 2)
        yield _row(candidate, WHAT[2], first, (_opened(other, pictures),))
    if candidate.source.checkpoint and candidate.variant.backend != "pytorch":
        rebuilt = replace(candidate, source=again)
        yield _row(candidate, WHAT[4], first, (_opened(rebuilt, pictures),))


def _row(candidate: Candidate, what: str, first: _Masks, repeated: Iterator[_Masks] | tuple[_Masks, ...]) -> NoiseRow:
    found = [difference(name, first[name], masks[name]) for masks in repeated for name in masks]
    return NoiseRow(name=candidate.name, what=what, differences=tuple(found))


def _opened(candidate: Candidate, pictures: Sequence[Picture]) -> _Masks:
    with candidate.open() as model:
        return _masks(model, pictures)


def _masks(model: SaliencyModel, pictures: Sequence[Picture]) -> _Masks:
    return {picture.name: model.mask(picture.image_HWC) for picture in pictures}


def _in_a_batch(model: SaliencyModel, pictures: Sequence[Picture]) -> _Masks:
    """Each picture beside its mirror image, which has its size."""
    masks = {}
    for picture in pictures:
        pair = (picture.image_HWC, np.ascontiguousarray(picture.image_HWC[:, ::-1]))
        raw = model.infer([model.prepare(image_HWC) for image_HWC in pair])
        masks[picture.name] = model.finish(raw[0], *picture.image_HWC.shape[:2])
    return masks
