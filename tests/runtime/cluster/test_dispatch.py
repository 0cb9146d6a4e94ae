"""The loop that hands out work, with workers that are made up: every item comes back once, whatever dies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basnet_runtime.cluster.dispatch import WorkerDied, dispatch
from basnet_torch.errors import BackendUnavailable


class Fake:
    """Workers whose fate is drawn: `dies(items, running)` gives the deaths of a piece."""

    def __init__(self, workers=2, poison=(), raises=(), choose=lambda n: 0, deaths=1, bystanders=False):
        self.workers, self.poison, self.raises = workers, set(poison), set(raises)
        self.choose, self.deaths, self.bystanders = choose, deaths, bystanders
        self.running = {}
        self.most = 0
        self.runs = []

    def ready(self):
        return self.workers

    def awaited(self):
        return False

    def start(self, number, items):
        assert number not in self.running
        self.running[number] = items
        self.runs.append(items)
        self.most = max(self.most, len(self.running))

    def wait(self, seconds):
        if not self.running:
            return []
        number = sorted(self.running)[self.choose(len(self.running))]
        items = self.running.pop(number)
        if self.poison & set(items):
            found = [(number, WorkerDied(self.deaths))]
            if self.bystanders:  # as a scheduler may charge what it had only assigned to that worker
                found += [(other, WorkerDied(self.deaths)) for other in self.running]
                self.running.clear()
            return found
        if self.raises & set(items):
            return [(number, RuntimeError("defect"))]
        return [(number, "fine")]


def chunks(items, size):
    left = list(items)

    def take(workers):
        taken, left[:] = left[:size], left[size:]
        return tuple(taken)

    return take


def outcomes(engine, items, size, **options):
    found = []
    for each, answer in dispatch(chunks(items, size), engine, **options):
        found += [(item, answer) for item in each]
    return found


def test_all_come_back_in_pieces_of_as_many_as_were_taken():
    engine = Fake(workers=3)
    found = outcomes(engine, range(10), 4)
    assert sorted(found) == [(item, "fine") for item in range(10)]
    assert sorted(map(len, engine.runs)) == [2, 4, 4]
    assert engine.most == 3


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 30),
    size=st.integers(1, 7),
    workers=st.integers(1, 4),
    deaths=st.sampled_from([1, 2, 4]),
    bystanders=st.booleans(),
    data=st.data(),
)
def test_each_item_once_and_exactly_the_poisonous_fail(count, size, workers, deaths, bystanders, data):
    poison = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    raises = data.draw(st.sets(st.integers(0, count - 1), max_size=2)) - poison
    engine = Fake(
        workers, poison, raises, lambda n: data.draw(st.integers(0, n - 1)), deaths=deaths, bystanders=bystanders
    )
    found = outcomes(engine, range(count), size)
    assert sorted(item for item, _ in found) == list(range(count))
    assert {item for item, answer in found if isinstance(answer, WorkerDied)} == poison
    assert {item for item, answer in found if isinstance(answer, RuntimeError)} == raises
    assert engine.most <= workers


def test_a_death_of_the_machine_costs_one_more_run():
    engine = Fake(workers=1)
    died = iter([[(1, WorkerDied(1))]])
    plain = engine.wait
    engine.wait = lambda seconds: (engine.running.clear() or found) if (found := next(died, None)) else plain(seconds)
    assert sorted(outcomes(engine, range(3), 3)) == [(0, "fine"), (1, "fine"), (2, "fine")]


def test_items_that_begin_leaves_out_are_not_started():
    engine = Fake()
    found = outcomes(engine, range(6), 2, begin=lambda items: tuple(item for item in items if item > 3))
    assert sorted(found) == [(4, "fine"), (5, "fine")]


def test_what_is_added_after_an_answer_is_done_too():
    left = [(1,)]
    engine = Fake()
    found = []
    for items, _ in dispatch(lambda workers: left.pop() if left else (), engine):
        found += items
        if items == (1,):
            left.append((2,))
    assert found == [1, 2]


def test_without_a_worker_for_long_the_run_ends():
    now = [0.0]
    engine = Fake(workers=0)
    engine.wait = lambda seconds: now.__setitem__(0, now[0] + 7) or []
    with pytest.raises(BackendUnavailable, match="no worker for 60 s; results are kept, and the same command resumes"):
        outcomes(engine, range(3), 1, clock=lambda: now[0])
    assert 60 < now[0] < 80


def test_a_worker_that_is_opening_its_model_is_waited_for():
    now = [0.0]
    engine = Fake(workers=0)
    engine.awaited = lambda: True

    def wait(seconds):
        now[0] += 100
        engine.workers = 1
        engine.wait = plain
        return []

    plain, engine.wait = engine.wait, wait
    assert len(outcomes(engine, range(3), 1, clock=lambda: now[0])) == 3


def test_workers_that_go_after_the_last_answer_do_not_matter():
    engine = Fake(workers=1)
    plain = engine.wait

    def wait(seconds):
        engine.workers = 0
        return plain(seconds)

    engine.wait = wait
    assert outcomes(engine, [1], 1) == [(1, "fine")]


def test_late_workers_are_used():
    engine = Fake(workers=0)
    plain = engine.wait

    def wait(seconds):
        engine.workers += 1
        return plain(seconds)

    engine.wait = wait
    assert len(outcomes(engine, range(9), 1)) == 9
    assert engine.most > 1
