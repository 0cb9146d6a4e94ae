"""What is claimed of engines on a CUDA device, held against what the reports of single steps found."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from basnet_benchmarks.gpu_steps import WIDE

__all__ = ["Bar", "bars_of"]

Values = Mapping[str, Any]
_NOT_PROVEN = "not proven on a GPU"
_WORK = 254e9  # operations of one picture of 256 x 256 at width 64
_CEILING = 790e12  # operations a second of one NVIDIA H200 in FP16, measured with large products


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One claim: what is asked, what was found, and whether that meets it; None where it was not measured."""

    claim: str
    asked: str
    found: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """In words."""
        return _NOT_PROVEN if self.met is None else "met" if self.met else "missed"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"claim": self.claim, "asked": self.asked, "found": self.found, "verdict": self.verdict}


def bars_of(reports: Mapping[str, Values]) -> tuple[Bar, ...]:
    """What the reports say to each claim. `reports`: by the names of their steps."""
    latency = reports.get(f"latency-{WIDE}-tensor")
    engine = {batch: _device_seconds(latency, f"{WIDE}-tensor-fp16.plan", batch=batch) for batch in (1, 32)}
    eager = _device_seconds(latency, None, precision="fp32", batch=32)
    compiled = _device_seconds(latency, None, precision="fp16 compiled", batch=32)
    rate = None if engine[32] is None else 32 * _WORK / engine[32] / _CEILING
    return (
        _most("width 64, FP16 engine alone, batch 1, median", engine[1], 1e-3, 1e3, "ms"),
        _least("width 64, FP16 engine alone, batch 32, share of 790 TFLOP/s", rate, 0.6, 100, "%"),
        _least("the same, times PyTorch eager FP32", _over(eager, engine[32]), 8, 1, "x"),
        _least("the same, times compiled PyTorch in half precision", _over(compiled, engine[32]), 1.3, 1, "x"),
        *(
            _least(f"{name}, of what its slowest stage allows", _allowed(values), 0.9, 100, "%")
            for name, values in reports.items()
            if name.startswith("video-") and name != "video-cpu"
        ),
        *(
            _parity_bar(f"{name}, {row['model']}", row)
            for name, values in reports.items()
            if name.startswith("parity-") and name != "parity-cpu"
            for row in values["candidates"]
        ),
    )


def _device_seconds(
    report: Values | None, model: str | None, *, batch: int, precision: str | None = None
) -> float | None:
    """Median of the device's own time of one row: of that engine, or of PyTorch in that arithmetic."""
    for row in report["results"] if report else ():
        fits = row["model"].startswith(model) if model else row["backend"].startswith("PyTorch")
        if fits and row["pictures"] == batch and precision in (None, row["precision"]) and row.get("device"):
            times = row["device"].get("graph_s") or row["device"].get("compute_s")
            return statistics.median(times) if times else None
    return None


def _over(other: float | None, own: float | None) -> float | None:
    return None if other is None or own is None else other / own


def _allowed(report: Values) -> float | None:
    """The time of the slowest stage, as a share of the time of the whole run: 1 where all others hide behind it."""
    shares = [
        max(run["wall_seconds_by_stage"].values()) / run["seconds"]
        for result in report["results"]
        for run in result["runs"]
        if run.get("wall_seconds_by_stage") and run["seconds"]
    ]
    return statistics.median(shares) if shares else None


def _least(claim: str, value: float | None, least: float, factor: float, unit: str) -> Bar:
    found = "" if value is None else f"{value * factor:.3g} {unit}"
    return Bar(
        claim=claim,
        asked=f"at least {least * factor:g} {unit}",
        found=found,
        met=None if value is None else value >= least,
    )


def _most(claim: str, value: float | None, most: float, factor: float, unit: str) -> Bar:
    found = "" if value is None else f"{value * factor:.3g} {unit}"
    return Bar(
        claim=claim,
        asked=f"at most {most * factor:g} {unit}",
        found=found,
        met=None if value is None else value <= most,
    )


def _parity_bar(claim: str, row: Values) -> Bar:
    ran = row.get("report") is not None
    return Bar(
        claim=claim, asked="the parity contract", found=row["verdict"], met=row["verdict"] == "passed" if ran else None
    )
