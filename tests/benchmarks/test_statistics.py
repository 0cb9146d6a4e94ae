"""Statistics against numpy, textbook ranks and simulation; who runs when, what is counted, what is waited for."""

import gc
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from basnet_benchmarks import statistics as module
from basnet_benchmarks.statistics import (
    Estimate,
    Measurement,
    measure_rounds,
    median_estimate,
    ratio_estimate,
    round_order,
    wait_until_quiet,
)


def turns_of(array):
    return tuple(tuple(map(float, row)) for row in array)


def test_percentiles_are_numpys_over_all_calls():
    times = np.random.default_rng(0).lognormal(size=(8, 3))
    measured = Measurement(turns_s=turns_of(times), pictures=4)
    assert measured.median_s.value == np.median(times)
    assert [measured.p90_s, measured.p99_s] == list(np.percentile(times, (90, 99)))
    assert measured.pictures_per_second == 4 / np.median(times)
    quartiles = np.percentile(times, (25, 75))
    assert measured.spread == pytest.approx((quartiles[1] - quartiles[0]) / np.median(times))
    middle = np.sort(np.median(times, axis=1))
    assert (measured.median_s.low, measured.median_s.high) == (middle[0], middle[-1])


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (30, 10)])
def test_interval_ranks_are_the_tabled_ones(count, rank):
    found = median_estimate(list(range(1, count + 1)))
    assert (found.low, found.high) == ((rank, count + 1 - rank) if rank else (None, None))


def test_interval_holds_the_median_as_often_as_it_says():
    samples = np.random.default_rng(1).lognormal(size=(2000, 10))
    found = [median_estimate(sample) for sample in samples]
    share = np.mean([estimate.low <= 1 <= estimate.high for estimate in found])
    assert 0.965 < share < 0.99  # 97.9 % is exact for ten values


def test_ratio_is_taken_round_by_round_so_that_drift_cancels():
    drift = np.linspace(1, 5, 8)
    slow, fast = (Measurement(turns_s=turns_of(drift[:, None] * factor)) for factor in (3.0, 2.0))
    ratio = ratio_estimate(slow, fast)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    shuffled = Measurement(turns_s=slow.turns_s[::-1])
    assert ratio_estimate(shuffled, fast).low < 1 < ratio_estimate(shuffled, fast).high
    with pytest.raises(ValueError, match="same rounds"):
        ratio_estimate(slow, Measurement(turns_s=fast.turns_s[:-1]))


def test_warnings_say_what_speaks_against_the_numbers():
    quiet = Measurement(turns_s=((1.0, 1.01),) * 6, idle_s=(0.0,) * 6)
    assert quiet.warnings == ()
    wide = Measurement(turns_s=((1.0, 2.0),) * 6)
    assert "vary by 100%" not in wide.warnings[0]
    assert f"vary by {wide.spread:.0%}" in wide.warnings[0]
    few = Measurement(turns_s=((1.0,),) * 5)
    assert few.median_s == Estimate(value=1.0, low=None, high=None)
    assert "5 rounds are too few" in few.warnings[0]
    assert "disturb the next" in Measurement(turns_s=((1.0,),) * 6, idle_s=(1.2,)).warnings[0]


@pytest.mark.parametrize("turns", [(), ((),), ((1.0,), ())])
def test_a_measurement_without_times_is_refused(turns):
    with pytest.raises(ValueError, match="turns"):
        Measurement(turns_s=turns)


def test_each_round_gives_every_candidate_one_turn():
    log, collecting = [], set()

    def note(name):
        log.append(name)
        collecting.add(gc.isenabled())

    names = ("a", "b", "c")
    calls = {name: lambda name=name: note(name) for name in names}
    measured = measure_rounds(calls, rounds=6, calls=2, warm_up=1, pictures=5)
    assert log[:3] == list(names)
    turns = [log[start : start + 3] for start in range(3, len(log), 3)]  # an untimed call and two timed ones
    assert all(len(set(turn)) == 1 for turn in turns)
    order = [turn[0] for turn in turns]
    assert [order[i : i + 3] for i in range(0, 18, 3)] == [round_order(list(names), i) for i in range(6)]
    assert all([len(turn) for turn in m.turns_s] == [2] * 6 and len(m.warm_up_s) == 1 for m in measured.values())
    assert {m.pictures for m in measured.values()} == {5}
    assert collecting == {True, False}  # on while warming up, off in the rounds
    assert gc.isenabled()


def test_every_candidate_is_first_and_follows_every_other_over_the_rounds():
    names = ["a", "b", "c", "d"]
    orders = [round_order(names, i) for i in range(8)]
    assert {order[0] for order in orders} == set(names)
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert all((b, a) in follows for a, b in follows)
    assert all(sorted(order) == names for order in orders)


def test_times_are_those_of_the_calls():
    calls = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}
    measured = measure_rounds(calls, rounds=2, calls=1, warm_up=1)
    assert measured["short"].seconds.min() >= 0.002
    assert measured["long"].seconds.min() >= 0.02
    assert measured["short"].median_s.value < measured["long"].median_s.value


class Clock:
    """A process whose threads compute until `busy_until`."""

    def __init__(self, busy_until):
        self.now, self.busy_until = 0.0, busy_until

    def perf_counter(self):
        return self.now

    def process_time(self):
        return min(self.now, self.busy_until)

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("busy", "expected"), [(0.0, 0.0), (0.05, 0.05), (9.0, 0.5)])
def test_waiting_ends_when_the_process_is_quiet_or_at_the_limit(monkeypatch, busy, expected):
    monkeypatch.setattr(module, "time", Clock(busy))
    assert wait_until_quiet(limit=0.5) == pytest.approx(expected, abs=0.01)
