"""Dispatch of work to workers that may die: each item comes back exactly once.

    for items, answer in dispatch(take, engine, begin=journal_them):
        ...                     # the worker's answer, or the exception that these items met

The loop knows no engine and no pictures. No more pieces are in flight than there are workers, so a death is charged to
few; a piece whose worker died is split into single items, and an item that was there at a second death runs alone in
the cluster: only then it is certain that no neighbor is to blame.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from basnet_torch.errors import BackendUnavailable

__all__ = ["GOES_ON", "Engine", "WorkerDied", "dispatch"]

GOES_ON = "results are kept, and the same command resumes"
_LOOK_SECONDS = 1.0
_DEATHS_ALONE = 2  # of workers on one item with nothing else in flight, before it is given up


class WorkerDied(Exception):
    """A piece was given up because `deaths` workers died while they had it."""

    def __init__(self, deaths: int) -> None:
        super().__init__(deaths)
        self.deaths = deaths


class Engine(Protocol):
    """What starts pieces and watches workers; Dask distributed is one."""

    def ready(self) -> int:
        """How many workers may have work now."""

    def awaited(self) -> bool:
        """Whether some worker is there that has not answered yet what it is."""

    def start(self, number: int, items: tuple[Any, ...]) -> None:
        """Start a piece on some worker; `number` is never used again."""

    def wait(self, seconds: float) -> Iterable[tuple[int, Any]]:
        """Wait for answers of pieces by number: values, or exceptions (`WorkerDied`).

        Returns early once there are any.

        Raises:
            BackendUnavailable: The cluster is lost.
        """


@dataclass(frozen=True, slots=True)
class _Piece:
    items: tuple[Any, ...]
    deaths: int = 0
    deaths_alone: int | None = None  # None while others run beside it


def dispatch(
    take: Callable[[int], tuple[Any, ...]],
    engine: Engine,
    *,
    begin: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda items: items,
    patience: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each item once, with the answer of its piece.

    Args:
        take: Gives the items of the next piece, told how many workers there are; none when there are none now. It is
            asked again after each answer.
        engine: Runs pieces.
        begin: Called before items are started the first time; returns those that are to be started.
        patience: Seconds without a worker after which the run ends.
        clock: For tests.

    Raises:
        BackendUnavailable: There was no worker for that long, or the cluster is lost.
    """
    loop = _Loop(take, begin)
    number, seen = 0, clock()
    following: _Piece | None = None
    while True:
        workers = engine.ready()
        seen = clock() if workers or engine.awaited() else seen
        while len(loop.running) < max(1, workers):
            following = following or loop.following(max(1, workers))
            if following is None or not workers:
                break
            number += 1
            loop.running[number] = following
            engine.start(number, following.items)
            following = None
        if following is None and not loop.running:
            return
        if clock() - seen > patience:
            raise BackendUnavailable(f"no worker for {patience:.0f} s; {GOES_ON}")
        for done, answer in engine.wait(_LOOK_SECONDS):
            piece = loop.running.pop(done)
            if (values := loop.answered(piece, answer)) is not None:
                yield piece.items, values


class _Loop:
    """Pieces that wait and run."""

    def __init__(self, take: Callable[[int], tuple[Any, ...]], begin: Callable[..., tuple[Any, ...]]) -> None:
        self.running: dict[int, _Piece] = {}
        self._take = take
        self._begin = begin
        self._again: deque[_Piece] = deque()
        self._suspects: deque[_Piece] = deque()

    def following(self, workers: int) -> _Piece | None:
        """The next piece to start; suspects come last, each with nothing beside it."""
        if any(piece.deaths_alone is not None for piece in self.running.values()):
            return None
        if self._again:
            return self._again.popleft()
        while items := self._take(workers):
            if items := self._begin(items):
                return _Piece(items)
        return self._suspects.popleft() if self._suspects and not self.running else None

    def answered(self, piece: _Piece, answer: Any) -> Any:
        """The answer to give for a piece; None where its items run again."""
        dead = answer.deaths if isinstance(answer, WorkerDied) else 0
        deaths = piece.deaths + dead
        if isinstance(answer, Exception) and len(piece.items) > 1:
            self._again += (_Piece((item,), deaths) for item in piece.items)
            return None
        if not dead:
            return answer
        alone = 0 if piece.deaths_alone is None else piece.deaths_alone + dead
        if alone >= _DEATHS_ALONE:
            return WorkerDied(deaths)
        self._suspects.append(_Piece(piece.items, deaths, alone))
        return None
