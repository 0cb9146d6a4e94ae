"""FP32 layer search: the layers that must stay FP32 for the contract.

Each stage of the network is reduced alone and what that does to the masks is measured: alone, because beside all others
the noise of one cannot be separated. Their parts then stay FP32, those of the noisiest stage for its arithmetic first,
until the contract holds, and as few of them as hold it. In the time that is left, one convolution of these parts after
the other is reduced after all, the largest first, where the contract holds without it. Where noise comes from every
layer of a stage alike, as that of 16-bit values does, whole stages stay FP32 at a time.

    found = search_fp32_layers(parts, judge, seconds=300)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from basnet_runtime.parity import ParityReport

__all__ = ["Found", "Judge", "largest_parts", "search_fp32_layers", "stage_of", "stages_of"]

_MOST_COST = 0.5  # of the arithmetic: beyond that the file is not what its name says
_LEAST_COST = 0.002
Progress = Callable[[str], None]


class Judge(Protocol):
    """Measures a candidate, given the parts that stay FP32."""

    def distance(self, kept: Collection[str]) -> float:
        """Mean difference to PyTorch FP32 over a few pictures, to rank parts by."""

    def report(self, kept: Collection[str]) -> ParityReport:
        """The contract, on every picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The outcome.

    Attributes:
        kept: Parts that stay FP32, most useful first; empty when none need to.
        report: The contract with them; a failed one, the nearest, when no affordable set keeps it in the time allowed.
        noise: For each stage that was measured, the mean difference when it alone is reduced.
        tried: The parts that could have stayed FP32, in the order they were added.
    """

    kept: tuple[str, ...]
    report: ParityReport
    noise: Mapping[str, float] = field(default_factory=dict)
    tried: tuple[str, ...] = ()

    @property
    def failure(self) -> str:
        """Why nothing was found."""
        names = self.tried if len(self.tried) <= 4 else (*self.tried[:3], f"{len(self.tried) - 3} more")
        return (
            f"FP32 layers: no set of {', '.join(names)} keeps the contract, the nearest is {self.report}. "
            "Allow more --search-minutes or use more precision; INT8 may gain from more calibration pictures"
        )


def search_fp32_layers(
    parts: Mapping[str, float],
    judge: Judge,
    *,
    seconds: float,
    progress: Progress = lambda _: None,
    pieces: Mapping[str, float] | None = None,
    whole_stages: bool = False,
) -> Found:
    """Find the fewest parts, by noise per cost, that keep the contract.

    Args:
        parts: Name of each part and its share of the arithmetic.
        judge: Measures candidates.
        seconds: When to stop; at least one candidate is validated.
        progress: Called with what is found.
        pieces: Single layers of the parts, each with its share, where they can be separated; None leaves parts whole.
        whole_stages: Let all parts of a stage stay FP32 together.
    """
    end = time.monotonic() + seconds
    report = judge.report(())
    if report:
        return Found(kept=(), report=report)
    progress(f"limits are exceeded ({'; '.join(report.failures)}): looking for layers to keep in FP32")
    stages = stages_of(parts)
    noise = _measured(stages, judge, end)
    costs = {stage: max(_LEAST_COST, sum(parts[part] for part in members)) for stage, members in stages.items()}
    # Variances add up, hence the square. Stages the time did not reach come last, in the network's order.
    ranked = sorted(stages, key=lambda stage: -(noise.get(stage, 0.0) ** 2) / costs[stage])
    order = [stages[stage] for stage in ranked]
    units = order if whole_stages else [[part] for members in order for part in members]
    found = _fewest(_affordable(units, parts), judge, end, noise, progress)
    return _thinned(found, pieces, judge, end, progress) if pieces and found.report else found


def stages_of(parts: Iterable[str]) -> dict[str, list[str]]:
    """Group parts by stage."""
    stages: dict[str, list[str]] = {}
    for part in parts:
        stages.setdefault(stage_of(part), []).append(part)
    return stages


def stage_of(part: str) -> str:
    """The stage of a part or of a value that it makes.

    >>> stage_of("predict.encoder.stage1.0"), stage_of("refine.up4")
    ('predict.encoder.stage1', 'refine')
    """
    names = part.split(".")
    return ".".join(names[: 3 if names[0] == "predict" and len(names) > 3 else 2 if names[0] == "predict" else 1])


def largest_parts(kept: Collection[str], parts: Iterable[str]) -> tuple[str, ...]:
    """Name parts by what holds them, where all of that is kept.

    >>> largest_parts(["encoder.a.0", "encoder.a.1", "bridge"], ["encoder.a.0", "encoder.a.1", "encoder.b", "bridge"])
    ('encoder.a', 'bridge')
    """
    others = [part for part in parts if part not in kept]
    found = []
    for part in kept:
        names = part.split(".")
        holders = (".".join(names[:length]) for length in range(1, len(names)))
        whole = (name for name in holders if not any(f"{other}.".startswith(f"{name}.") for other in others))
        found.append(next(whole, part))
    return tuple(dict.fromkeys(found))


def _measured(stages: Mapping[str, Sequence[str]], judge: Judge, end: float) -> dict[str, float]:
    """Measure the noise of each stage, in at most half of the time."""
    half = time.monotonic() + (end - time.monotonic()) / 2
    noise = {}
    for stage in stages:
        if time.monotonic() > half:
            break
        distance = judge.distance([part for other in stages if other != stage for part in stages[other]])
        noise[stage] = distance if math.isfinite(distance) else math.inf  # it overflowed
    return noise


def _affordable(units: Sequence[Sequence[str]], parts: Mapping[str, float]) -> list[Sequence[str]]:
    chosen, spent = [], 0.0
    for unit in units:
        cost = sum(parts[part] for part in unit)
        if spent + cost <= _MOST_COST:
            chosen.append(unit)
            spent += cost
    return chosen


def _fewest(
    units: Sequence[Sequence[str]], judge: Judge, end: float, noise: Mapping[str, float], progress: Progress
) -> Found:
    """Add one unit at a time, not two: another one may also do harm."""
    closest = judge.report(())
    kept: list[str] = []
    for count, unit in enumerate(units, 1):
        kept.extend(unit)
        report = judge.report(kept)
        progress(f"{count} of {len(units)} parts in FP32: {report}")
        if report:
            return Found(kept=tuple(kept), report=report, noise=noise)
        if count == 1 or report.boundary_iou > closest.boundary_iou:
            closest = report
        if time.monotonic() > end:
            break
    return Found(kept=(), report=closest, noise=noise, tried=tuple(part for unit in units for part in unit))


def _thinned(found: Found, pieces: Mapping[str, float], judge: Judge, end: float, progress: Progress) -> Found:
    """Drop layers without which the contract holds, the most expensive first."""
    kept = [piece for part in found.kept for piece in pieces if piece == part or piece.startswith(f"{part}.")]
    report = found.report
    for piece in sorted(kept, key=lambda piece: -pieces[piece]):
        if time.monotonic() > end:
            break
        fewer = [other for other in kept if other != piece]
        thinner = judge.report(fewer)
        if thinner:
            kept, report = fewer, thinner
    progress(f"of their layers {len(kept)} must stay, {sum(pieces[piece] for piece in kept):.1%} of the arithmetic")
    return replace(found, kept=tuple(kept), report=report)
