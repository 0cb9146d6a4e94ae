"""The gate for changes: parity by the contract, speed ratios against a baseline.

report = run_gate(GateConfig(baseline=Path("benchmarks/baseline.json")))
raise SystemExit(report.exit_code)

The baseline says what is measured and what it gave last. Masks must keep the contract, and may not drift towards its
limits: a measure fails when it has used up more than a share of the room that the baseline left, which the contract
alone would not see. Speed is compared as the ratio to PyTorch eager FP32 of the same run, and fails only when its whole
confidence interval lies below the baseline's by more than the band: machines differ, and are shared. Drift and speed
are compared where the CPU has the maker and the instruction sets of the baseline's; drift only while the checkpoint
is the same.
What cannot run here is not proven, and that is never a pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from operator import not_
from pathlib import Path
from typing import Any, ClassVar, Self

from basnet_benchmarks.candidates import PICTURES, THREADS, parse_device
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.latency import LatencyConfig, measure_latency
from basnet_benchmarks.parity import PARITY_FAILED, UNPROVEN, ParityConfig, ParityRow, Verdict, measure_parity
from basnet_benchmarks.statistics import Estimate
from basnet_runtime.machine.cpu_features import processor_vendor
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.manifest import read_manifest, sha256_of
from basnet_runtime.parity import MEASURES
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.json_values import from_plain, to_plain
from basnet_torch.options import argument, option

__all__ = ["Baseline", "BaselineRow", "GateConfig", "GateReport", "GateRow", "run_gate"]

FORMAT = 1
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRow:
    """What one candidate gave when the baseline was written."""

    device: str  # where it ran
    name: str  # file, backend and precision
    parity: Mapping[str, float]  # measure to value
    speed: Estimate | None  # ratio to PyTorch eager FP32; None where it was not timed
    processor: str  # on which machine
    # what decides there how fast a network runs and how it rounds: maker and instruction sets, or the graphics card
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What the gate measures, and what it gave last."""

    reference: str  # the checkpoint
    candidates: tuple[str, ...]  # files that must give its masks
    devices: Mapping[str, tuple[str, ...]]  # device to the backends that are measured there, as `BACKEND:PRECISION`
    rounds: int = 8  # turns of each candidate when it is timed; 0 does not time
    speed_band: float = 0.4  # share by which a ratio may fall
    mask_band: float = 0.25  # share of the room between a measure and its limit that may be used up
    reference_sha256: str = ""  # digest of the checkpoint that the rows were measured with; empty where it is not known
    rows: tuple[BaselineRow, ...] = ()  # what was measured
    folder: Path = Path()  # of the file, which its paths start from

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds!r}; it must be a number, 0 to time nothing")
        for name in ("speed_band", "mask_band"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a share in 0..1")
        if not self.devices:
            raise ValueError("devices is empty; name at least one with its backends")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Inverse of `to_json`.

        Raises:
            UsageError: The file is missing or is no baseline.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return replace(from_plain(values, cls), folder=path.parent)
        except OSError as error:
            raise UsageError(f"baseline {path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UsageError(f"baseline {path}: is no baseline of basnet-bench gate ({error})") from error

    def to_json(self) -> str:
        """The file's text."""
        values = {"format": FORMAT, **to_plain(self)}
        del values["folder"]
        return json.dumps(values, indent=1) + "\n"

    def with_candidates(self, paths: Sequence[Path]) -> Self:
        """Add `.onnx` files, each with the backends that run its precision on the CPU."""
        if not paths:
            return self
        names = [os.path.relpath(path, self.folder) for path in paths]
        cpu = dict.fromkeys(self.devices.get("cpu", ()))
        for manifest in map(read_manifest, paths):
            first = "int8:openvino" if manifest.quantized_for == "openvino" else manifest.precision
            cpu |= dict.fromkeys((f"onnxruntime:{first}", f"openvino:{manifest.precision}"))
        return replace(
            self,
            candidates=tuple(dict.fromkeys((*self.candidates, *names))),
            devices={**self.devices, "cpu": tuple(cpu)},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Gate configuration; `baseline` is written anew where the contract holds."""

    baseline: Path = field(metadata=argument("BASELINE", "JSON: what to measure, and what it gave."))
    update: bool = field(default=False, metadata=option("Write what is measured into BASELINE.", "--update"))
    speed: bool = field(default=True, metadata=option("Compare masks only.", "--no-speed", parse=not_))
    candidates: tuple[Path, ...] = field(
        default=(), metadata=option("Measure this .onnx too; with --update it stays. Repeatable.", "--candidate")
    )
    require_all: bool = field(
        default=False, metadata=option("Fail for candidates that cannot run here too.", "--require-all")
    )
    pictures: Path | None = field(default=None, metadata=PICTURES)
    threads: int | None = field(default=None, metadata=THREADS)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """One candidate on one device, now and before."""

    device: str  # where
    name: str  # file, backend and precision
    parity: ParityRow  # what the contract says of it now
    speed: Estimate | None = None  # ratio to PyTorch eager FP32 now; None where it was not timed
    speed_floor: float | None = None  # the least the ratio's interval must reach; None where the baseline has none
    before: BaselineRow | None = None  # what the baseline holds; None for a new candidate
    timing: bool = False  # whether it was to be timed
    # share of the room to a limit that may be used up; None where drift cannot be measured
    mask_band: float | None = None
    unlike: str = ""  # why drift and speed are not compared with the baseline; empty where they are

    @property
    def remarks(self) -> tuple[str, ...]:
        """Each reason for a verdict that is no pass, and what could not be measured."""
        return tuple(filter(None, (*self.parity.remarks, *self.drifts, self._slow(), self._untimed(), self.unlike)))

    @property
    def drifts(self) -> tuple[str, ...]:
        """List each measure that moved too far from the baseline, in one line."""
        report, before = self.parity.report, self.before
        if report is None or before is None or self.mask_band is None:
            return ()
        found = []
        for name in MEASURES:
            limit, was, now = getattr(report.tolerance, name), before.parity.get(name), getattr(report, name)
            if limit is None or was is None:
                continue
            most = was + self.mask_band * (limit - was)
            if now < most if name == "boundary_iou" else now > most:
                bound = "least" if name == "boundary_iou" else "most"
                found.append(
                    f"{name} drifted from {was:.3g} to {now:.3g} on {report.worst[name]}, at {bound} {most:.3g}"
                )
        return tuple(found)

    @property
    def verdict(self) -> Verdict:
        """The contract's verdict, unless the candidate is slow or its speed unknown."""
        if self.parity.verdict != "passed":
            return self.parity.verdict
        if self.drifts or self._slow():
            return "failed"
        return "not proven" if self._untimed() else "passed"

    def _untimed(self) -> str:
        if not self.timing or self.speed is not None or self.speed_floor is None or self.parity.report is None:
            return ""
        return "the baseline has its speed, and PyTorch FP32 or this candidate could not be timed"

    def _slow(self) -> str:
        if self.speed is None or self.speed_floor is None:
            return ""
        most = self.speed.value if self.speed.high is None else self.speed.high
        if most >= self.speed_floor:
            return ""
        return f"{most:.2f} times PyTorch FP32 at most, at least {self.speed_floor:.2f} belong to the baseline"

    @property
    def measures(self) -> dict[str, float]:
        """Measured parity; empty where it did not run."""
        report = self.parity.report
        return {} if report is None else {name: getattr(report, name) for name in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("device", "name", "verdict", "remarks", "speed", "speed_floor", "drifts", "unlike", "before")
        return {**{name: getattr(self, name) for name in names}, "parity": self.measures}


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """A whole run."""

    JSON: ClassVar = (
        *("command", "baseline", "conclusion", "updated", "environment", "measures", "rows"),
        *("gone", "exit_code"),
    )
    command: ClassVar = "gate"
    measures: ClassVar = MEASURES
    baseline: str
    environment: Environment
    rows: tuple[GateRow, ...]
    require_all: bool = False
    updated: bool = False
    gone: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """4 when a candidate failed; 3 when none or not every required one ran; else 0."""
        verdicts = [row.verdict for row in self.rows]
        if "failed" in verdicts:
            return PARITY_FAILED
        missing = verdicts.count("not proven")
        return UNPROVEN if missing == len(verdicts) or (missing and self.require_all) else 0

    @property
    def conclusion(self) -> str:
        """In one line: what failed, or what was passed and what was not proven."""
        told = [f"{row.name} on {row.device}: {', '.join(row.remarks)}" for row in self.rows if row.verdict == "failed"]
        if told:
            return f"failed: {'; '.join(told)}"
        verdicts = [row.verdict for row in self.rows]
        return f"{verdicts.count('passed')} passed, {verdicts.count('not proven')} not proven"

    @property
    def complaint(self) -> str:
        """Why the exit code is not 0, in one line."""
        if self.exit_code != UNPROVEN:
            return self.conclusion
        unproven = (row for row in self.rows if row.verdict == "not proven")
        return "; ".join(f"not proven: {row.name} on {row.device}: {', '.join(row.remarks)}" for row in unproven)


def run_gate(config: GateConfig, progress: _Progress = lambda _: None) -> GateReport:
    """Measure what the baseline names and compare.

    Raises:
        UsageError: The baseline cannot be read.
        BackendUnavailable: PyTorch, which runs the reference, is not there.
        BasnetError: A model or picture cannot be read.
    """
    baseline = Baseline.read(config.baseline).with_candidates(config.candidates)
    threads = config.threads or allowed_threads()
    rows = tuple(row for device in baseline.devices for row in _rows_on(device, baseline, config, threads, progress))
    names = {(row.device, row.name) for row in rows}
    report = GateReport(
        baseline=config.baseline.name,
        environment=environment(threads),
        rows=rows,
        require_all=config.require_all,
        gone=tuple((row.device, row.name) for row in baseline.rows if (row.device, row.name) not in names),
    )
    if not config.update or report.exit_code:
        return report
    _write(config.baseline, baseline, report)
    return replace(report, updated=True)


def _rows_on(
    device: str, baseline: Baseline, config: GateConfig, threads: int, progress: _Progress
) -> tuple[GateRow, ...]:
    """Every candidate of a device: masks first, then times of those that ran."""
    files = tuple(baseline.folder / name for name in baseline.candidates)
    reference = baseline.folder / baseline.reference
    result = measure_parity(
        ParityConfig(
            reference=reference,
            candidates=files,
            pictures=config.pictures,
            backends=baseline.devices[device],
            threads=threads,
            device=parse_device(device),
        ),
        progress,
    )
    ran = tuple(dict.fromkeys(_choice_of(row) for row in result.candidates if row.report is not None))
    timed: dict[tuple[str, str, str], Estimate | None] = {}
    if ran and config.speed and baseline.rounds:
        latency = LatencyConfig(
            models=tuple(map(str, (reference, *files))),
            rounds=baseline.rounds,
            backends=ran,
            threads=threads,
            device=parse_device(device),
            stages=False,
            memory=False,
        )
        timed = _timed(latency, progress)
    return tuple(
        _gate_row(row, device, baseline, timed.get((row.model, row.backend, row.precision)), config)
        for row in result.candidates
    )


def _choice_of(row: ParityRow) -> str:
    """What asks for a row's variant; a row's precision may also name a mode or a provider."""
    precision, *more = row.precision.split()
    return ":".join((row.backend, precision, *(name for name in more if name == "openvino")))


def _timed(config: LatencyConfig, progress: _Progress) -> dict[tuple[str, str, str], Estimate | None]:
    """Ratios to PyTorch FP32, by file, backend and precision."""
    try:
        return {row.key[:3]: row.ratio for row in measure_latency(config, progress).results}
    except BackendUnavailable:
        return {}  # rows whose speed the baseline has are then not proven


def _gate_row(row: ParityRow, device: str, baseline: Baseline, speed: Estimate | None, config: GateConfig) -> GateRow:
    before = next((old for old in baseline.rows if (old.device, old.name) == (device, row.name)), None)
    plain = GateRow(device=device, name=row.name, parity=row, speed=speed, before=before, timing=config.speed)
    if before is None or config.update or row.report is None:
        return plain
    here = _machine_kind(device)
    if before.kind not in ("", here):
        other = f"the baseline is from {before.kind or 'another machine'}, this is {here}"
        return replace(plain, unlike=f"drift and speed not measured: {other}")
    floor = None
    if before.speed is not None:
        least = before.speed.value if before.speed.low is None else before.speed.low
        floor = least * (1 - baseline.speed_band)
    changed = ""
    if baseline.reference_sha256 not in ("", _digest(baseline)):
        changed = "drift not measured: the checkpoint is another than the baseline's; --update writes a new baseline"
    band = None if changed or config.pictures else baseline.mask_band  # other pictures have other worst ones
    return replace(plain, speed_floor=floor, mask_band=band, unlike=changed)


@cache
def _machine_kind(device: str) -> str:
    """Maker and instruction sets, or the graphics card: what must be alike for masks and ratios to be comparable.

    Libraries choose kernels by the maker too, and the same instructions take other times.
    """
    found = environment()
    if device != "cpu":
        return "; ".join(found.gpus) or "no graphics card"
    return " ".join(filter(None, (processor_vendor(), *found.processor_flags))) or "a CPU of unknown instruction sets"


def _digest(baseline: Baseline) -> str:
    return sha256_of(baseline.folder / baseline.reference)


def _write(path: Path, baseline: Baseline, report: GateReport) -> None:
    """Put what was proven now in the baseline's rows; rows that did not run here stay as they were."""
    from basnet_torch.files import atomic_write

    rows = {(row.device, row.name): row for row in baseline.rows if (row.device, row.name) not in report.gone}
    for row in (row for row in report.rows if row.verdict == "passed"):
        kind, before = _machine_kind(row.device), row.before
        kept = before.speed if before is not None and before.kind == kind else None  # not timed now
        rows[row.device, row.name] = BaselineRow(
            device=row.device,
            name=row.name,
            parity=row.measures,
            speed=row.speed or kept,
            processor=report.environment.processor,
            kind=kind,
        )
    new = replace(baseline, rows=tuple(rows.values()), reference_sha256=_digest(baseline))
    with atomic_write(path, overwrite=True) as beside:
        beside.write_text(new.to_json(), encoding="utf-8")
