"""Interleaved rounds; medians and ratios with 95 % confidence intervals.

    measured = measure_rounds({"a": run_a, "b": run_b}, rounds=10, calls=3, warm_up=2)
    ratio_estimate(measured["a"], measured["b"])

In every round each candidate has one turn of a few calls, in another order than the round before, so that none profits
from when it ran. A turn begins when the process is quiet, because thread pools spin for a while after their work and
would take the CPU from the next candidate; its first call, which wakes the candidate's own pool and caches, is not
timed. Intervals are taken over turns, not over calls: they are the order statistics that hold the median with at least
95 % confidence whatever the distribution (David and Nagaraja, "Order Statistics", section 7.1). Fewer than six turns
give none. All times are seconds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Measurement", "measure_rounds", "median_estimate", "ratio_estimate", "round_order"]

_CONFIDENCE = 0.95
_WIDE = 0.10  # an interquartile range above this share of the median
_IDLE_LIMIT = 1.0  # after which a pool that still spins is no longer waited for
_NAP_SECONDS = 0.004
_QUIET_SHARE = 0.1  # of one CPU; a nap by itself uses about a hundredth
_Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A median with its confidence interval, None where there are too few turns."""

    value: float
    low: float | None
    high: float | None


def median_estimate(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Return the median of independent values and its `_CONFIDENCE` interval.

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
        if 2 * tail > 1 - _CONFIDENCE:
            break
        rank += 1
    return rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What one candidate took."""

    JSON: ClassVar = (
        *("pictures", "median_s", "p90_s", "p99_s", "spread", "pictures_per_second"),
        *("idle_s", "warm_up_s", "turns_s", "warnings"),
    )
    turns_s: tuple[tuple[float, ...], ...]  # times of every timed call, grouped by round; nothing is dropped
    warm_up_s: tuple[float, ...] = ()  # times of the calls before the first round, which count nowhere
    pictures: int = 1  # pictures per call
    # after each turn, for how long the candidate's threads kept the CPU busy without work
    idle_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.turns_s or not all(self.turns_s):
            raise ValueError("turns: there must be at least one, and each must hold a call")

    @property
    def seconds(self) -> NDArray[np.float64]:
        """All timed calls, in the order they were made."""
        return np.array([second for turn in self.turns_s for second in turn])

    @property
    def turn_medians(self) -> NDArray[np.float64]:
        """One value per round."""
        return np.array([np.median(turn) for turn in self.turns_s])

    @property
    def median_s(self) -> Estimate:
        """Median of all calls, its interval from the turns."""
        over_turns = median_estimate(self.turn_medians)
        return Estimate(value=float(np.median(self.seconds)), low=over_turns.low, high=over_turns.high)

    @property
    def p90_s(self) -> float:
        """90th percentile of all calls, interpolated."""
        return float(np.percentile(self.seconds, 90))

    @property
    def p99_s(self) -> float:
        """99th percentile of all calls, interpolated; near the largest of a few."""
        return float(np.percentile(self.seconds, 99))

    @property
    def spread(self) -> float:
        """Interquartile range of all calls as a share of their median."""
        low, high = np.percentile(self.seconds, (25, 75))
        return float(high - low) / self.median_s.value

    @property
    def pictures_per_second(self) -> float:
        """Throughput at the median."""
        return self.pictures / self.median_s.value

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about the numbers, one line each."""
        found = []
        if self.spread > _WIDE:
            found.append(f"times vary by {self.spread:.0%} (interquartile range), so the machine was not quiet")
        if _rank(len(self.turns_s)) == 0:
            found.append(f"{len(self.turns_s)} rounds are too few for a confidence interval; take 6 or more")
        if self.idle_s and max(self.idle_s) >= _IDLE_LIMIT:
            found.append(f"its threads kept the CPU busy for {_IDLE_LIMIT:g} s after a turn and disturb the next")
        return tuple(found)


def ratio_estimate(reference: Measurement, candidate: Measurement) -> Estimate:
    """How many times faster `candidate` is: the median of the ratios of each round.

    Both took their turn in every round, within seconds of each other, so a machine that drifts during the run slows
    both sides of each ratio.

    Raises:
        ValueError: When the two were not measured in the same rounds.

    >>> slow, fast = Measurement(turns_s=((2.0,), (4.0,))), Measurement(turns_s=((1.0,), (2.0,)))
    >>> ratio_estimate(slow, fast).value
    2.0
    """
    if len(reference.turns_s) != len(candidate.turns_s):
        raise ValueError(f"{len(reference.turns_s)} and {len(candidate.turns_s)} rounds; ratios need the same rounds")
    return median_estimate(reference.turn_medians / candidate.turn_medians)


def measure_rounds(
    calls_by_name: Mapping[str, _Call],
    *,
    rounds: int,
    calls: int,
    warm_up: int,
    pictures: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Measurement]:
    """Time every callable in turns of `calls` calls, each to its result on the host.

    `warm_up` calls of each come before the first round, timed apart; `pictures` is what a call works on. `progress` is
    called between turns.
    """
    names = list(calls_by_name)
    progress(f"warming up {len(names)} candidates")
    first = {name: tuple(_seconds(calls_by_name[name]) for _ in range(warm_up)) for name in names}
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    idle: dict[str, list[float]] = {name: [] for name in names}
    wait_until_quiet()
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle of a call would be counted as the candidate's
    try:
        for index in range(rounds):
            progress(f"round {index + 1} of {rounds}")
            for name in round_order(names, index):
                calls_by_name[name]()
                turns[name].append(tuple(_seconds(calls_by_name[name]) for _ in range(calls)))
                idle[name].append(wait_until_quiet())
    finally:
        if was_on:
            gc.enable()
    return {
        name: Measurement(
            turns_s=tuple(turns[name]), warm_up_s=first[name], pictures=pictures, idle_s=tuple(idle[name])
        )
        for name in names
    }


def round_order(names: list[str], index: int) -> list[str]:
    """Return the order of round `index`: odd rounds run backwards, each two rotate.

    >>> [round_order(["a", "b", "c"], i) for i in range(3)]
    [['a', 'b', 'c'], ['c', 'b', 'a'], ['b', 'c', 'a']]
    """
    shift = index // 2 % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if index % 2 else order


def wait_until_quiet(limit: float = _IDLE_LIMIT) -> float:
    """Wait until no thread of this process computes; returns the seconds waited.

    At most about `limit`.
    """
    start = time.perf_counter()
    while True:
        began, used = time.perf_counter(), time.process_time()
        time.sleep(_NAP_SECONDS)
        now = time.perf_counter()
        if time.process_time() - used < _QUIET_SHARE * (now - began):
            return began - start
        if now - start > limit:
            return now - start


def _seconds(call: _Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
