"""Who runs when, what is counted, and that spinning threads are waited for."""

import gc
import time
from collections import Counter
from itertools import pairwise

import pytest

from basnet_benchmarks import rounds as rounds_module
from basnet_benchmarks.rounds import measure_rounds, round_order, wait_until_quiet


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
    assert all([len(turn) for turn in m.turns] == [2] * 6 and len(m.warm_up) == 1 for m in measured.values())
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
    assert measured["short"].percentile(50) < measured["long"].percentile(50)


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
    monkeypatch.setattr(rounds_module, "time", Clock(busy))
    assert wait_until_quiet(limit=0.5) == pytest.approx(expected, abs=0.01)
