"""Times that were measured, and what may be said of them: medians with intervals, percentiles, ratios with intervals.

A measurement is made of turns: in every round each candidate has one turn of a few calls, so that calls of one turn
share the machine's state of that moment. Intervals are therefore taken over turns, not over calls: they are the order
statistics that hold the median with at least 95 % confidence whatever the distribution (David and Nagaraja, "Order
Statistics", section 7.1). Fewer than six turns give none.

All times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "IDLE_LIMIT", "WIDE", "Estimate", "Measurement", "median_estimate", "ratio_estimate"]

CONFIDENCE = 0.95
WIDE = 0.10  # an interquartile range above this share of the median
IDLE_LIMIT = 1.0  # seconds after which a pool that still spins is no longer waited for


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A median with its confidence interval; `low` and `high` are None where there are too few turns for one."""

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def median_estimate(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """The median of independent values and the interval that holds the true median with `CONFIDENCE`.

    >>> median_estimate([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    Estimate(value=3.5, low=1.0, high=6.0)
    >>> median_estimate([1.0, 2.0, 3.0])
    Estimate(value=2.0, low=None, high=None)
    """
    ordered = np.sort(np.asarray(values, np.float64))
    rank = _rank(len(ordered))
    low, high = (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (None, None)
    return Estimate(value=float(np.median(ordered)), low=low, high=high)


def _rank(count: int) -> int:
    """The largest r for which the r-th smallest and r-th largest of `count` values enclose the median; 0 for none."""
    tail, rank = 0.0, 0
    while 2 * rank < count:
        tail += math.comb(count, rank) / 2**count
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank += 1
    return rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What one candidate took.

    Attributes:
        turns: Seconds of every timed call, grouped by round; nothing is dropped.
        warm_up: Seconds of the calls before the first round, which count nowhere.
        pictures: Pictures per call.
        idle: After each turn, for how long the candidate's threads kept the processor busy without work.
    """

    turns: tuple[tuple[float, ...], ...]
    warm_up: tuple[float, ...] = ()
    pictures: int = 1
    idle: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.turns or not all(self.turns):
            raise ValueError("turns: there must be at least one, and each must hold a call")

    @property
    def seconds(self) -> NDArray[np.float64]:
        """All timed calls, in the order they were made."""
        return np.array([second for turn in self.turns for second in turn])

    @property
    def turn_medians(self) -> NDArray[np.float64]:
        """One value per round."""
        return np.array([np.median(turn) for turn in self.turns])

    @property
    def median(self) -> Estimate:
        """Median of all calls, its interval from the turns."""
        over_turns = median_estimate(self.turn_medians)
        return Estimate(value=self.percentile(50), low=over_turns.low, high=over_turns.high)

    def percentile(self, percent: float) -> float:
        """A percentile of all calls, interpolated as numpy does: the 99th of a few calls is near their largest."""
        return float(np.percentile(self.seconds, percent))

    @property
    def spread(self) -> float:
        """Interquartile range of all calls as a share of their median."""
        return (self.percentile(75) - self.percentile(25)) / self.percentile(50)

    @property
    def pictures_per_second(self) -> float:
        """Throughput at the median."""
        return self.pictures / self.percentile(50)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the numbers, one line each."""
        found = []
        if self.spread > WIDE:
            found.append(f"times vary by {self.spread:.0%} (interquartile range), so the machine was not quiet")
        if _rank(len(self.turns)) == 0:
            found.append(f"{len(self.turns)} rounds are too few for a confidence interval; take 6 or more")
        if self.idle and max(self.idle) >= IDLE_LIMIT:
            found.append(f"its threads kept the processor busy for {IDLE_LIMIT:g} s after a turn and disturb the next")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, raw times included."""
        return {
            "pictures": self.pictures,
            "median_s": self.median.to_dict(),
            "p90_s": self.percentile(90),
            "p99_s": self.percentile(99),
            "spread": self.spread,
            "pictures_per_second": self.pictures_per_second,
            "idle_s": list(self.idle),
            "warm_up_s": list(self.warm_up),
            "turns_s": [list(turn) for turn in self.turns],
            "warnings": list(self.warnings),
        }


def ratio_estimate(reference: Measurement, candidate: Measurement) -> Estimate:
    """How many times faster `candidate` is: the median of the ratios of each round.

    Both took their turn in every round, within seconds of each other, so a machine that drifts during the run slows
    both sides of each ratio.

    Raises:
        ValueError: When the two were not measured in the same rounds.

    >>> slow, fast = Measurement(turns=((2.0,), (4.0,))), Measurement(turns=((1.0,), (2.0,)))
    >>> ratio_estimate(slow, fast).value
    2.0
    """
    if len(reference.turns) != len(candidate.turns):
        raise ValueError(f"{len(reference.turns)} and {len(candidate.turns)} rounds; ratios need the same rounds")
    return median_estimate(reference.turn_medians / candidate.turn_medians)
