"""The backend protocol: describe the input, run batches, close.

A backend knows no files and no resizing.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from basnet_runtime.kinds import BackendName
    from basnet_torch.spec import TensorSpec

__all__ = ["WORKER_NAME", "Backend", "FinishedInference", "InferenceFuture", "OverlappedBackend"]

WORKER_NAME = "network"  # what the threads of batches beside each other are called, by which their time is found


class Backend(Protocol):
    """A network ready to run.

    Two graphs exist, told apart by `input`: `tensor` takes `image` float32 N,3,H,W normalized and gives `mask` float32
    N,1,H,W in 0..1; `frame` takes `frame` uint8 N,H,W,3 RGB of any size and gives `mask` uint8 N,H,W.
    """

    @property
    def name(self) -> BackendName | Literal["fake"]:
        """The library that runs."""

    @property
    def input(self) -> TensorSpec:
        """What `infer` takes; `None` axes are free."""

    @property
    def output(self) -> TensorSpec:
        """What `infer` returns."""

    @property
    def description(self) -> str:
        """What really runs, for people.

        Library and version, device or provider, precision, threads.
        """

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Run one batch; each mask depends on its own picture alone.

        Nothing is computed over the batch axis.
        """

    def close(self) -> None:
        """Give memory and devices back; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class InferenceFuture(Protocol):
    """The masks of a batch that may still run; like `concurrent.futures.Future`."""

    def done(self) -> bool:
        """Whether `result` returns at once."""

    def result(self) -> NDArray[Any]:
        """What `infer` would have returned; waits for it."""


class FinishedInference:
    """The `InferenceFuture` of a batch that has run already, or has failed."""

    def __init__(self, masks: NDArray[Any] | None = None, error: Exception | None = None) -> None:
        self._masks = masks
        self._error = error

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return True

    def result(self) -> NDArray[Any]:
        """The batch's masks, or its error."""
        if self._error is not None:
            raise self._error
        return cast("NDArray[Any]", self._masks)


@runtime_checkable
class OverlappedBackend(Protocol):
    """A backend that queues batches, so that copies and computing overlap."""

    depth: int
    """Batches in flight that it is meant for; more are taken, but wait."""

    def submit(self, pictures: Sequence[NDArray[Any]] | NDArray[Any], *, is_busy: bool = False) -> InferenceFuture:
        """Start a batch; the pictures are copied at once, and need not be stacked.

        Args:
            pictures: The batch.
            is_busy: Others are on their way, so that a CPU's threads are better not all given to this one.
        """
