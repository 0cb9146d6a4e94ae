"""Several training runs side by side: what differed, what it gave, and their curves, from `basnet-train`'s directories.

report = compare_runs([Path("runs/bce"), Path("runs/hybrid")])

A run is compared by what it wrote, `config.json` and `log.jsonl`; one that still trains is shown as far as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from basnet_benchmarks.environment import Environment, environment
from basnet_torch.errors import DataError, UsageError

__all__ = ["RunsReport", "TrainingRun", "compare_runs", "read_run"]

_POINTS = 120  # of a loss curve; each is the median of its stretch of steps
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm: no parameters
_Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """One run directory.

    Attributes:
        name: To show.
        config: Its options.
        torch: Version it was trained with; empty where it is not written down.
        device: What it ran on.
        parameters: Of the network; None where no checkpoint can be read.
        steps: Records of steps, by step.
        validations: Records of validations, by step.
    """

    name: str
    config: Mapping[str, Any]
    torch: str
    device: str
    parameters: int | None
    steps: tuple[_Record, ...]
    validations: tuple[_Record, ...]

    @property
    def hours(self) -> float:
        """Spent in steps; validation, saving and pauses are not in it."""
        return sum(float(step["seconds"]) for step in self.steps) / 3600

    @property
    def best(self) -> _Record | None:
        """The validation of the largest maxF."""
        return max(self.validations, key=lambda record: float(record["max_f"]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        seen = len(self.steps) * int(self.config.get("batch", 0))
        return {
            "name": self.name,
            "config": dict(self.config),
            "torch": self.torch,
            "device": self.device,
            "parameters": self.parameters,
            "steps": self.steps[-1]["step"] if self.steps else 0,
            "pictures_seen": seen,
            "hours": self.hours,
            "pictures_per_second": seen / (3600 * self.hours) if self.hours else None,
            "best": dict(self.best) if self.best else None,
            "last": dict(self.validations[-1]) if self.validations else None,
            "curves": {"steps": _loss_curve(self.steps), "validation": self._validation_curve()},
        }

    def _validation_curve(self) -> dict[str, list[float]]:
        hours = dict(zip((step["step"] for step in self.steps), _hours(self.steps), strict=True))
        shown = [record for record in self.validations if record["step"] in hours]
        return {
            "step": [record["step"] for record in shown],
            "hours": [hours[record["step"]] for record in shown],
            "max_f": [record["max_f"] for record in shown],
            "mae": [record["mae"] for record in shown],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsReport:
    """Runs to compare; `environment` is where they were compared, not where they were trained."""

    environment: Environment
    runs: tuple[TrainingRun, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """Options that are not the same in all runs."""
        names = dict.fromkeys(name for run in self.runs for name in run.config)
        return tuple(name for name in names if len({_text(run.config.get(name)) for run in self.runs}) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "runs",
            "differing": list(self.differing),
            "environment": self.environment.to_dict(),
            "runs": [run.to_dict() for run in self.runs],
        }


def compare_runs(folders: Sequence[Path]) -> RunsReport:
    """Read the run directories.

    Raises:
        UsageError: None is given, or a folder is no run directory.
        DataError: A log cannot be read.
    """
    if not folders:
        raise UsageError("runs: give at least one directory that basnet-train wrote")
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    runs = tuple(read_run(folder, name) for folder, name in zip(folders, names, strict=True))
    return RunsReport(environment=environment(), runs=runs)


def read_run(folder: Path, name: str = "") -> TrainingRun:
    """One run directory, shown as `name`.

    Raises:
        UsageError: The folder is no run directory.
        DataError: Its files cannot be read.
    """
    try:
        head = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UsageError(f"run {folder}: has no {Path(error.filename).name}; give a --run of basnet-train") from error
    except (OSError, ValueError) as error:
        raise DataError(f"run {folder}: cannot be read ({error})") from error
    if not isinstance(head, dict) or not isinstance(head.get("config"), dict):
        raise DataError(f"run {folder}: config.json holds no config; give a --run of basnet-train")
    records = list(_records(folder, lines))
    versions = head.get("versions")
    return TrainingRun(
        name=name or folder.resolve().name,
        config=head["config"],
        torch=str(versions.get("torch", "")) if isinstance(versions, dict) else "",
        device=str(head.get("device", "")),
        parameters=_parameters(folder),
        steps=_by_step(records, "step", ("loss", "seconds")),
        validations=_by_step(records, "validation", ("max_f", "mae")),
    )


def _records(folder: Path, lines: Sequence[str]) -> Iterator[_Record]:
    """Every line; a broken last one is what a run leaves that was killed while it wrote."""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise DataError(f"run {folder}: line {number} of log.jsonl is no JSON ({error})") from error
        if isinstance(record, dict):
            yield record


def _by_step(records: Iterable[_Record], kind: str, needed: Sequence[str]) -> tuple[_Record, ...]:
    """Records of one kind; of a step that was done again after a resume the later one counts."""
    found = {
        int(record["step"]): record
        for record in records
        if record.get("kind") == kind and "step" in record and all(name in record for name in needed)
    }
    return tuple(found[step] for step in sorted(found))


def _parameters(folder: Path) -> int | None:
    """How many the run's checkpoint holds; None without torch or before a checkpoint was written."""
    from basnet_torch.errors import CheckpointError

    path = next((path for path in (folder / "best.pth", folder / "last.pth") if path.exists()), None)
    if path is None or find_spec("torch") is None:
        return None
    from basnet_torch.checkpoint import read_file

    try:
        state = read_file(path).get("state_dict", {})
    except CheckpointError:
        return None
    return int(sum(value.numel() for name, value in state.items() if not name.endswith(_STATISTICS)))


def _hours(steps: Sequence[_Record]) -> list[float]:
    """Time spent in steps until the end of each."""
    return list(accumulate(float(step["seconds"]) / 3600 for step in steps))


def _loss_curve(steps: Sequence[_Record]) -> dict[str, list[float]]:
    if not steps:
        return {"step": [], "hours": [], "loss": []}
    parts = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
    hours, losses = _hours(steps), np.array([float(step["loss"]) for step in steps])
    return {
        "step": [steps[part[-1]]["step"] for part in parts],
        "hours": [hours[part[-1]] for part in parts],
        "loss": [float(np.median(losses[part])) for part in parts],
    }


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
