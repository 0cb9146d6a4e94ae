"""Runs several candidates against each other in one process so that none profits from when it ran.

Each round gives every candidate one turn, in another order than the round before. A turn begins when the process has
become quiet, because thread pools spin for a while after their work and would take the processor from the next
candidate; its first call, which wakes the candidate's own pool and caches, is not timed.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from basnet_benchmarks.measurement import IDLE_LIMIT, Measurement

__all__ = ["measure_rounds", "round_order", "wait_until_quiet"]

_NAP_SECONDS = 0.004
_QUIET_SHARE = 0.1  # of one processor; a nap by itself uses about a hundredth
_Call = Callable[[], object]


def measure_rounds(
    calls_by_name: Mapping[str, _Call],
    *,
    rounds: int,
    calls: int,
    warm_up: int,
    pictures: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Measurement]:
    """Time every callable.

    Args:
        calls_by_name: What to time; each call must end when its result is on the host.
        rounds: Turns of each.
        calls: Timed calls in a turn.
        warm_up: Calls of each before the first round, timed apart.
        pictures: Pictures that each call works on.
        progress: Called between turns with what is being done.
    """
    names = list(calls_by_name)
    progress(f"warming up {len(names)} candidates")
    first = {name: tuple(_seconds(calls_by_name[name]) for _ in range(warm_up)) for name in names}
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    idle: dict[str, list[float]] = {name: [] for name in names}
    wait_until_quiet()
    with _no_garbage_collection():
        for index in range(rounds):
            progress(f"round {index + 1} of {rounds}")
            for name in round_order(names, index):
                turns[name].append(_turn(calls_by_name[name], calls))
                idle[name].append(wait_until_quiet())
    return {
        name: Measurement(turns=tuple(turns[name]), warm_up=first[name], pictures=pictures, idle=tuple(idle[name]))
        for name in names
    }


def round_order(names: list[str], index: int) -> list[str]:
    """The order of round `index`: every second round runs backwards, and each two rounds begin one later.

    >>> [round_order(["a", "b", "c"], i) for i in range(3)]
    [['a', 'b', 'c'], ['c', 'b', 'a'], ['b', 'c', 'a']]
    """
    shift = index // 2 % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if index % 2 else order


def wait_until_quiet(limit: float = IDLE_LIMIT) -> float:
    """Sleep until no thread of this process computes; returns for how many seconds one did, at most about `limit`."""
    start = time.perf_counter()
    while True:
        began, used = time.perf_counter(), time.process_time()
        time.sleep(_NAP_SECONDS)
        now = time.perf_counter()
        if time.process_time() - used < _QUIET_SHARE * (now - began):
            return began - start
        if now - start > limit:
            return now - start


def _turn(call: _Call, calls: int) -> tuple[float, ...]:
    call()
    return tuple(_seconds(call) for _ in range(calls))


def _seconds(call: _Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection in the middle of a call would be counted as the candidate's."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
