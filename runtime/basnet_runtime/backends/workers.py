"""Batches that run beside each other on a processor, for the backends whose own queue does not do that.

workers = Workers(2, alone=infer_on_all_threads, beside=infer_on_one_thread)
masks = workers.submit(batch).result()
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from basnet_runtime.backends.base import WORKER_NAME

__all__ = ["Workers"]

Infer = Callable[[NDArray[Any]], NDArray[Any]]
_START_SECONDS = 60.0


class Workers:
    """Threads that each run one batch at a time; a batch that has the processor to itself runs on all of it."""

    def __init__(self, count: int, *, alone: Infer, beside: Infer) -> None:
        """`alone` uses every thread, `beside` one; all threads are there at once, so that their time can be told."""
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=WORKER_NAME)
        self._alone = alone
        self._beside = beside
        self._lock = threading.Lock()
        self._open = 0
        ready = threading.Barrier(count + 1)
        for _ in range(count):
            self._pool.submit(ready.wait, _START_SECONDS)
        ready.wait(_START_SECONDS)

    def submit(self, batch: NDArray[Any]) -> Future[NDArray[Any]]:
        """Start a batch; its masks come from the future, as does what it raised."""
        with self._lock:
            self._open += 1
        return self._pool.submit(self._run, batch)

    def _run(self, batch: NDArray[Any]) -> NDArray[Any]:
        with self._lock:
            infer = self._alone if self._open == 1 else self._beside
        try:
            return infer(batch)
        finally:
            with self._lock:
                self._open -= 1

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        self._pool.shutdown(cancel_futures=True)
