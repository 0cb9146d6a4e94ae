"""Whether a change may go in: parity by the contract, speed by ratios against a baseline, a table of what moved.

report = run_gate(GateConfig(baseline=Path("benchmarks/baseline.json")))
raise SystemExit(report.exit_code)

The baseline says what is measured and what it gave last. Masks must keep the contract, and may not drift towards its
limits: a measure fails when it has used up more than a share of the room that the baseline left, which the contract
alone would not see. Speed is compared as the ratio to PyTorch eager FP32 of the same run, and fails only when its whole
confidence interval lies below the baseline's by more than the band: machines differ, and are shared. Drift and speed
are judged where the processor has the instruction sets of the baseline's; drift only while the checkpoint is the same.
What cannot run here is not proven, and that is never a pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from basnet_benchmarks.candidates import parse_device
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.latency import LatencyConfig, LatencyRow, measure_latency
from basnet_benchmarks.measurement import Estimate
from basnet_benchmarks.parity import PARITY_FAILED, UNPROVEN, ParityConfig, ParityRow, Verdict, measure_parity
from basnet_runtime.manifest import Manifest, read_manifest, sha256_of
from basnet_runtime.parity import MEASURES
from basnet_runtime.threads import allowed_threads
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = ["Baseline", "BaselineRow", "GateConfig", "GateReport", "GateRow", "run_gate"]

FORMAT = 1
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRow:
    """What one candidate gave when the baseline was written.

    Attributes:
        device: Where it ran.
        name: File, backend and precision.
        parity: Measure to value.
        speed: Ratio to PyTorch eager FP32; None where it was not timed.
        processor: On which machine.
        kind: What decides there how fast a network runs and how it rounds: instruction sets, or the graphics card.
    """

    device: str
    name: str
    parity: Mapping[str, float]
    speed: Estimate | None
    processor: str
    kind: str = ""

    def __post_init__(self) -> None:
        values = [*self.parity.values(), *((self.speed.value, self.speed.low or 0.0) if self.speed else ())]
        if not all(isinstance(value, int | float) for value in values):
            raise ValueError(f"row {self.name}: holds a value that is no number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What the gate measures, and what it gave last.

    Attributes:
        folder: Of the file, which its paths start from.
        reference: The checkpoint.
        candidates: Files that must give its masks.
        devices: Device to the backends that are measured there, as `BACKEND:PRECISION`.
        rounds: Turns of each candidate when it is timed; 0 does not time.
        speed_band: Share by which a ratio may fall.
        mask_band: Share of the room between a measure and its limit that may be used up.
        reference_sha256: Digest of the checkpoint that the rows were measured with; empty where it is not known.
        rows: What was measured.
    """

    folder: Path
    reference: str
    candidates: tuple[str, ...]
    devices: Mapping[str, tuple[str, ...]]
    rounds: int = 8
    speed_band: float = 0.4
    mask_band: float = 0.25
    reference_sha256: str = ""
    rows: tuple[BaselineRow, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str) or not all(isinstance(name, str) for name in self.candidates):
            raise ValueError("reference and candidates must be paths, as texts")
        if not isinstance(self.rounds, int) or self.rounds < 0:
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
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            rows = tuple(
                BaselineRow(**{**row, "speed": Estimate(**row["speed"]) if row["speed"] else None})
                for row in values.pop("rows", ())
            )
            devices = {device: tuple(backends) for device, backends in values.pop("devices").items()}
            candidates = values.pop("candidates")
            if not isinstance(candidates, list):
                raise ValueError("candidates is no list")
            return cls(folder=path.parent, devices=devices, candidates=tuple(candidates), rows=rows, **values)
        except OSError as error:
            raise UsageError(f"baseline {path}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"baseline {path}: is no baseline of basnet-bench gate ({error})") from error

    def to_json(self) -> str:
        """The file's text."""
        values = {key: value for key, value in asdict(self).items() if key != "folder"}
        return json.dumps({"format": FORMAT, **values}, indent=1) + "\n"

    def row(self, device: str, name: str) -> BaselineRow | None:
        """What a candidate gave, or None for a new one."""
        return next((row for row in self.rows if (row.device, row.name) == (device, name)), None)

    def with_candidates(self, paths: Sequence[Path]) -> Self:
        """Further `.onnx` files, each with the backends that run its precision on the CPU.

        Raises:
            ModelFileError: One cannot be read.
        """
        if not paths:
            return self
        names = [os.path.relpath(path, self.folder) for path in paths]
        more = (choice for path in paths for choice in _choices_of(read_manifest(path)))
        cpu = tuple(dict.fromkeys((*self.devices.get("cpu", ()), *more)))
        return replace(
            self, candidates=tuple(dict.fromkeys((*self.candidates, *names))), devices={**self.devices, "cpu": cpu}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """What to do.

    Attributes:
        baseline: The file.
        update: Write what is measured into it, where the contract holds.
        speed: Whether to time.
        require_all: Whether what cannot run here fails the gate, as on a machine that must be able to.
        pictures: Folder of pictures or data set; None takes the bundled photographs.
        threads: Processor threads; None takes what the container allows.
        candidates: `.onnx` files that are measured too, and with `update` belong to the baseline from then on.
    """

    baseline: Path
    update: bool = False
    speed: bool = True
    require_all: bool = False
    pictures: Path | None = None
    threads: int | None = None
    candidates: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """One candidate on one device, now and before.

    Attributes:
        device: Where.
        name: File, backend and precision.
        parity: What the contract says of it now.
        speed: Ratio to PyTorch eager FP32 now; None where it was not timed.
        speed_floor: The least the ratio's interval must reach; None where the baseline has none.
        before: What the baseline holds; None for a new candidate.
        timing: Whether it was to be timed.
        mask_band: Share of the room to a limit that may be used up; None where drift cannot be judged.
        unlike: Why drift and speed are not judged by the baseline; empty where they are.
    """

    device: str
    name: str
    parity: ParityRow
    speed: Estimate | None = None
    speed_floor: float | None = None
    before: BaselineRow | None = None
    timing: bool = False
    mask_band: float | None = None
    unlike: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Each reason for a verdict that is no pass, and what could not be judged."""
        return tuple(filter(None, (*self.parity.remarks, *self.drifts, self._slow(), self._untimed(), self.unlike)))

    @property
    def drifts(self) -> tuple[str, ...]:
        """Each measure that moved too far from the baseline towards its limit, in one line."""
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
        """The contract's, unless the candidate became slow or its speed could not be compared."""
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

    def now(self) -> dict[str, float]:
        """Measured parity; empty where it did not run."""
        report = self.parity.report
        return {} if report is None else {name: getattr(report, name) for name in MEASURES}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "device": self.device,
            "name": self.name,
            "verdict": self.verdict,
            "remarks": list(self.remarks),
            "parity": self.now(),
            "speed": None if self.speed is None else self.speed.to_dict(),
            "speed_floor": self.speed_floor,
            "drifts": list(self.drifts),
            "unlike": self.unlike,
            "before": None if self.before is None else asdict(self.before),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """A whole run."""

    baseline: str
    environment: Environment
    rows: tuple[GateRow, ...]
    require_all: bool = False
    updated: bool = False
    gone: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """4 when something failed; 3 when nothing ran, or something that had to did not; else 0."""
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "gate",
            "baseline": self.baseline,
            "conclusion": self.conclusion,
            "updated": self.updated,
            "environment": self.environment.to_dict(),
            "measures": list(MEASURES),
            "rows": [row.to_dict() for row in self.rows],
            "gone": [list(row) for row in self.gone],
            "exit_code": self.exit_code,
        }


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
    result = measure_parity(
        ParityConfig(
            reference=baseline.folder / baseline.reference,
            candidates=tuple(baseline.folder / name for name in baseline.candidates),
            pictures=config.pictures,
            backends=baseline.devices[device],
            threads=threads,
            device=parse_device(device),
        ),
        progress,
    )
    ran = tuple(_choice_of(row) for row in result.rows if row.report is not None)
    timed = _timed(ran, device, baseline, threads, progress) if ran and config.speed and baseline.rounds else {}
    return tuple(
        _gate_row(row, device, baseline, timed.get((row.model, row.backend, row.precision)), config)
        for row in result.rows
    )


def _choices_of(manifest: Manifest) -> tuple[str, ...]:
    """What runs a file on the processor."""
    if manifest.quantized_for == "openvino":
        return "onnxruntime:int8:openvino", "openvino:int8"
    return f"onnxruntime:{manifest.precision}", f"openvino:{manifest.precision}"


def _choice_of(row: ParityRow) -> str:
    """What asks for a row's variant; a row's precision may also name a mode or a provider."""
    precision, *more = row.precision.split()
    return ":".join((row.backend, precision, *(name for name in more if name == "openvino")))


def _timed(
    backends: tuple[str, ...], device: str, baseline: Baseline, threads: int, progress: _Progress
) -> dict[tuple[str, str, str], LatencyRow]:
    """Each candidate's times, and the reference's in PyTorch FP32, by file, backend and precision."""
    names = (baseline.reference, *baseline.candidates)
    try:
        report = measure_latency(
            LatencyConfig(
                models=tuple(str(baseline.folder / name) for name in names),
                rounds=baseline.rounds,
                backends=tuple(dict.fromkeys(backends)),
                threads=threads,
                device=parse_device(device),
            ),
            progress,
        )
    except BackendUnavailable:
        return {}  # rows whose speed the baseline has are then not proven
    return {(row.model, row.backend, row.precision): row for row in report.rows}


def _gate_row(row: ParityRow, device: str, baseline: Baseline, timed: LatencyRow | None, config: GateConfig) -> GateRow:
    before = baseline.row(device, row.name)
    plain = GateRow(
        device=device,
        name=row.name,
        parity=row,
        speed=timed.ratio if timed else None,
        before=before,
        timing=config.speed,
    )
    if before is None or config.update or row.report is None:
        return plain
    other = _other_machine(before, device)
    if other:
        return replace(plain, unlike=other)
    floor = None
    if before.speed is not None:
        least = before.speed.value if before.speed.low is None else before.speed.low
        floor = least * (1 - baseline.speed_band)
    changed = _other_checkpoint(baseline)
    band = None if changed or config.pictures else baseline.mask_band  # other pictures have other worst ones
    return replace(plain, speed_floor=floor, mask_band=band, unlike=changed)


def _other_machine(before: BaselineRow, device: str) -> str:
    here = _machine_kind(device)
    if before.kind in ("", here):
        return ""
    return f"drift and speed not judged: the baseline is from {before.kind or 'another machine'}, this is {here}"


def _other_checkpoint(baseline: Baseline) -> str:
    if baseline.reference_sha256 in ("", _digest(baseline)):
        return ""
    return "drift not judged: the checkpoint is another than the baseline's; --update writes a new baseline"


@cache
def _machine_kind(device: str) -> str:
    """Instruction sets, or the graphics card: what must be alike for masks and ratios to be comparable."""
    found = environment()
    if device != "cpu":
        return "; ".join(found.gpus) or "no graphics card"
    return " ".join(found.processor_flags) or "a processor of unknown abilities"


def _digest(baseline: Baseline) -> str:
    return sha256_of(baseline.folder / baseline.reference)


def _kept_speed(row: GateRow) -> Estimate | None:
    """The baseline's, for a row that was not timed now; another machine's would not be comparable."""
    before = row.before
    return before.speed if before is not None and before.kind == _machine_kind(row.device) else None


def _write(path: Path, baseline: Baseline, report: GateReport) -> None:
    """Put what was proven now in the baseline's rows; rows that did not run here stay as they were."""
    from basnet_runtime.media.files import whole_file

    new = {
        (row.device, row.name): BaselineRow(
            device=row.device,
            name=row.name,
            parity=row.now(),
            speed=row.speed or _kept_speed(row),
            processor=report.environment.processor,
            kind=_machine_kind(row.device),
        )
        for row in report.rows
        if row.verdict == "passed"
    }
    kept = {(row.device, row.name): row for row in baseline.rows if (row.device, row.name) not in report.gone}
    rows = tuple({**kept, **new}.values())
    with whole_file(path, overwrite=True) as beside:
        text = replace(baseline, rows=rows, reference_sha256=_digest(baseline)).to_json()
        beside.write_text(text, encoding="utf-8")
