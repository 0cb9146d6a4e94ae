"""CPU workers: batches that run in parallel, for backends without such a queue.

workers = Workers(2, alone=infer_on_all_threads, beside=infer_on_one_thread)
masks = workers.submit(batch).result()
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import WORKER_NAME, FinishedInference, InferenceFuture
from basnet_torch.errors import UsageError
from basnet_torch.files import Closing
from basnet_torch.spec import TensorSpec, check_size

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["CpuBatches", "Workers", "may_load_twice", "run_checked"]

Infer = Callable[[NDArray[Any]], NDArray[Any]]
_START_SECONDS = 60.0
_LARGE_BYTES = 50_000_000


class Workers:
    """Threads that run one batch each; a batch alone runs on all of the CPU."""

    def __init__(self, count: int, *, alone: Infer, beside: Infer) -> None:
        """`alone` uses every thread, `beside` one.

        All threads start at once, so that their time can be measured.
        """
        from concurrent.futures import ThreadPoolExecutor  # a run of one picture needs none

        self._pool = ThreadPoolExecutor(count, thread_name_prefix=WORKER_NAME)
        self._alone = alone
        self._beside = beside
        self._lock = threading.Lock()
        self._open = 0
        ready = threading.Barrier(count + 1)
        for _ in range(count):
            self._pool.submit(ready.wait, _START_SECONDS)
        ready.wait(_START_SECONDS)

    def submit(self, batch: NDArray[Any], *, is_busy: bool = False) -> Future[NDArray[Any]]:
        """Start a batch; its masks come from the future, as does what it raised."""
        with self._lock:
            self._open += 1
        return self._pool.submit(self._run, batch, is_busy=is_busy)

    def _run(self, batch: NDArray[Any], *, is_busy: bool) -> NDArray[Any]:
        with self._lock:
            infer = self._alone if self._open == 1 and not is_busy else self._beside
        try:
            return infer(batch)
        finally:
            with self._lock:
                self._open -= 1

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        self._pool.shutdown(cancel_futures=True)


class CpuBatches(Closing):
    """An `OverlappedBackend` on a CPU: `infer` runs one batch, `submit` several.

    Threads that share a layer wait for each other at its end, and those that share nothing do not.
    """

    def __init__(self, threads: int, lone: Callable[[], Infer] | None) -> None:
        """`lone` loads the model again and returns a one-thread runner, if not None."""
        self.depth = threads + 1 if lone and threads > 1 else 1  # one waits, so that no thread does
        self._lone = lone
        self._workers: Workers | None = None

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return the masks of `batch`, read in place; the result is the caller's own."""
        raise NotImplementedError

    def submit(self, pictures: Sequence[NDArray[Any]] | NDArray[Any], *, is_busy: bool = False) -> InferenceFuture:
        """Start a batch; see `OverlappedBackend`."""
        batch: NDArray[Any] = np.stack(list(pictures))
        if self._lone is None or self.depth == 1:
            return FinishedInference(self.infer(batch))
        if self._workers is None:
            _return_free_memory()  # of the first model's loading, before the second one's
            beside = self._lone()
            _return_free_memory()
            self._workers = Workers(self.depth - 1, alone=self.infer, beside=beside)
        return self._workers.submit(batch, is_busy=is_busy)

    def close(self) -> None:
        """Give the threads back."""
        if self._workers is not None:
            self._workers.close()
        self._workers = self._lone = None


def may_load_twice(path: Path) -> bool:
    """Tell whether to load a model twice for parallel batches.

    A large one keeps all threads busy by itself.

    U2-Net, 176 MB, took 1.9 GB when it was loaded twice, ISNet in FP16, 88 MB, 2.7 GB.
    """
    return path.stat().st_size <= _LARGE_BYTES


def run_checked(infer: Infer, batch: NDArray[Any], taken: TensorSpec) -> NDArray[Any]:
    """Run a batch, one by one where the network's batch axis is fixed at 1.

    Many adopted networks have such an axis.

    >>> run_checked(lambda batch: batch + len(batch), np.zeros((2, 1)), TensorSpec(name="x", dtype="f", shape=(1, 1)))
    array([[1.],
           [1.]])

    Raises:
        UsageError: The batch is of another shape than the network takes, which runtimes find late and say oddly.
    """
    axes = (batch.shape, taken.shape)
    if len(batch.shape) != len(taken.shape) or any(b not in (None, a) for a, b in list(zip(*axes, strict=True))[1:]):
        raise UsageError(f"batch: {'x'.join(map(str, batch.shape))}, must be {taken}, ? any")
    if (taken.name, taken.shape[1:]) == ("image", (3, None, None)):  # of this project's exports
        try:
            check_size(*batch.shape[2:])
        except ValueError as error:
            raise UsageError(f"batch: {error}") from error
    if taken.shape[0] != 1 or len(batch) == 1:
        return infer(batch)
    return np.concatenate([infer(batch[i : i + 1]) for i in range(len(batch))])


def _return_free_memory() -> None:
    """Return the heap's free pages to the system, where the C library can: glibc keeps tens of MB of a parsed model."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS and Windows have none
        return
    trim(ctypes.c_size_t(0))
