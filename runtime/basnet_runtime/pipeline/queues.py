"""Bounded queue and byte budget of a run's threads; waits end when the run does."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["ByteBudget", "ClosableQueue", "Stopped"]

T = TypeVar("T")


class Stopped(BaseException):
    """Raised out of a wait when the run has ended.

    No `Exception`, or a handler would take it for an input's defect.
    """


class ByteBudget:
    """Memory for frames in flight: the reader waits for it, the writer frees it.

    Attributes:
        waited: Seconds that the reader has spent waiting.
    """

    def __init__(self, limit_bytes: int, on_wait: Callable[[], None] | None = None) -> None:
        """`on_wait`: called before waiting, so that frames held for a batch are freed."""
        self.waited = 0.0
        self._limit = limit_bytes
        self._on_wait = on_wait
        self._used = 0
        self._stopped = False
        self._changed = threading.Condition()

    def wait(self, nbytes: int) -> None:
        """Wait until `nbytes` fit; more than the limit fits when nothing else is there.

        Raises:
            Stopped: The run has ended.
        """
        start = time.perf_counter()
        if self._on_wait is not None and not self._fits(nbytes):
            self._on_wait()
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._fits(nbytes))
            self.waited += time.perf_counter() - start
            if self._stopped:
                raise Stopped

    def _fits(self, nbytes: int) -> bool:
        return self._used == 0 or self._used + nbytes <= self._limit

    @property
    def used(self) -> int:
        """Bytes of the frames on their way."""
        return self._used

    def take(self, nbytes: int) -> None:
        """Count a decoded frame (negative: a frame that is gone)."""
        with self._changed:
            self._used += nbytes
            self._changed.notify_all()

    def stop(self) -> None:
        """End every wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class ClosableQueue(Generic[T]):
    """A bounded queue with an end and an emergency stop."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._closed = False
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Add an item, waiting for a free place.

        Raises:
            Stopped: The run has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._capacity)
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no item follows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End every wait at once."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def has_items(self) -> bool:
        """Tell whether an item is there; None, which asks for what is held, is not one."""
        with self._changed:
            return any(item is not None for item in self._items)

    def __iter__(self) -> Iterator[T]:
        """Items until the end.

        Raises:
            Stopped: The run has ended.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._closed or bool(self._items))
                if self._stopped:
                    raise Stopped
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
