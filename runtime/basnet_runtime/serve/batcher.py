"""Dynamic batching: pictures of many callers in one thread of the model.

with Batcher(model, batch=8, wait_seconds=0.002) as batcher:
    raw_map = batcher.submit(model.prepare(image_HWC)).result()
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from basnet_torch.files import Closing

if TYPE_CHECKING:
    from basnet_runtime.backends.base import InferenceFuture
    from basnet_runtime.model import SaliencyModel

__all__ = ["Batcher"]

RawMap = NDArray[Any]


class _Item:
    """One prepared picture and where its raw map goes."""

    def __init__(self, prepared: NDArray[Any]) -> None:
        self.prepared = prepared
        self.future: Future[RawMap] = Future()


class Batcher(Closing):
    """One thread that owns the model; GPU libraries want to be called by one thread.

    A picture whose future was cancelled before its batch began costs nothing.
    """

    def __init__(
        self,
        model: SaliencyModel,
        *,
        batch: int = 1,
        wait_seconds: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda *_: None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the thread.

        Args:
            model: Runs the batches; as many as its `depth` are in flight.
            batch: The most pictures of one batch; those of one batch have one shape.
            wait_seconds: How long a batch waits for company.
            on_batch: Called with each finished batch's size and seconds.
            is_busy: Whether other pictures are on their way to the network, or from it.
        """
        self._model = model
        self._batch = batch
        self._wait_seconds = wait_seconds
        self._on_batch = on_batch
        self._is_busy = is_busy
        self._waiting: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, prepared: NDArray[Any]) -> Future[RawMap]:
        """Queue one preprocessed picture; the future gives its raw map or error.

        Raises:
            RuntimeError: The batcher is closed.
        """
        item = _Item(prepared)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(item)
            self._changed.notify()
        return item.future

    def close(self) -> None:
        """Run what is queued, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        in_flight: deque[tuple[InferenceFuture, list[_Item], float]] = deque()
        while True:
            items = self._next(wait=not in_flight)
            if items is None and not in_flight:
                return
            if items:
                began = time.perf_counter()
                try:
                    batch = [item.prepared for item in items]
                    in_flight.append((self._model.submit(batch, is_busy=self._is_busy()), items, began))
                except Exception as error:  # noqa: BLE001 - whatever it is, it is these callers' alone
                    _fail(items, error)
            # What is oldest is waited for when no more fit, or when nobody else waits: a batch that has the CPU to
            # itself runs on all of it, so that starting another beside it would not end either sooner.
            if in_flight and (not items or len(in_flight) >= self._model.depth):
                self._complete(*in_flight.popleft())

    def _next(self, *, wait: bool) -> list[_Item] | None:
        """The next batch; empty where nothing waits now, None when nothing will come any more."""
        with self._changed:
            while True:
                items = self._taken()
                if items:
                    break
                if self._is_closed:
                    return None
                if not wait:
                    return []
                self._changed.wait()
            deadline = time.monotonic() + self._wait_seconds
            while len(items) < self._batch and not self._is_closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
                items += self._taken(items)
            return items

    def _taken(self, first: Sequence[_Item] = ()) -> list[_Item]:
        """Pictures from the queue that fit one batch with `first`: of one shape, and still wanted."""
        shape = first[0].prepared.shape if first else None
        taken: list[_Item] = []
        passed: list[_Item] = []
        while self._waiting and len(first) + len(taken) < self._batch:
            item = self._waiting.popleft()
            if shape not in (None, item.prepared.shape):
                passed.append(item)
            elif item.future.set_running_or_notify_cancel():
                shape = item.prepared.shape
                taken.append(item)
        self._waiting.extendleft(reversed(passed))
        return taken

    def _complete(self, running: InferenceFuture, items: list[_Item], began: float) -> None:
        try:
            raw = running.result()
        except Exception as error:  # noqa: BLE001 - as above
            _fail(items, error)
            return
        self._on_batch(len(items), time.perf_counter() - began)
        for item, raw_map in zip(items, raw, strict=True):
            item.future.set_result(raw_map)


def _fail(items: list[_Item], error: Exception) -> None:
    for item in items:
        item.future.set_exception(error)
