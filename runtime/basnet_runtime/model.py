"""A backend with the preparing and finishing that belong to its weights: picture in, mask out."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Backend, OverlappedBackend, Ticket
from basnet_runtime.engine_facts import Profile
from basnet_torch.errors import MediaError
from basnet_torch.spec import Postprocess, Preprocess

__all__ = ["SaliencyModel"]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


class _Done:
    """The ticket of a batch that has run already."""

    def __init__(self, raw: NDArray[Any]) -> None:
        self._raw = raw

    def done(self) -> bool:
        return True

    def result(self) -> NDArray[Any]:
        return self._raw


class SaliencyModel:
    """Runs pictures of any size through one backend; a context manager that closes the backend."""

    def __init__(
        self,
        backend: Backend,
        preprocess: Preprocess,
        postprocess: Postprocess,
        name: str,
        profiles: tuple[Profile, ...] = (),
    ) -> None:
        """`name`: what to call the model, usually its file's name; `profiles`: the only shapes it takes, if any."""
        self.backend = backend
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.name = name
        self._profiles = profiles
        self._overlapped = backend if isinstance(backend, OverlappedBackend) else None

    @property
    def takes_frames(self) -> bool:
        """Whether the backend runs the `frame` graph (uint8 pictures of any size, resized inside)."""
        return self.backend.input.dtype == "uint8"

    def check_size(self, name: str, height: int, width: int) -> None:
        """Refuse a picture of a size that an engine with its sizes inside was not built for.

        Raises:
            MediaError: Naming the picture and what the engine takes.
        """
        if not self.takes_frames or not self._profiles:
            return
        if not any(p.holds((p.best[0], height, width, 3)) for p in self._profiles):
            held = "; ".join(
                f"{p.smallest[1]}x{p.smallest[2]} to {p.largest[1]}x{p.largest[2]}" for p in self._profiles
            )
            raise MediaError(
                f"{name}: is {height}x{width}, and {self.name} takes {held} (height x width); "
                "build it with other --height and --width, or run the .onnx"
            )

    def prepare(self, image_HWC: UInt8) -> NDArray[Any]:
        """One uint8 RGB picture as the backend's input without the batch axis."""
        return image_HWC if self.takes_frames else self.preprocess.apply(image_HWC)

    @property
    def depth(self) -> int:
        """Batches that are worth having in flight; 1 where a backend runs one after the other."""
        return self._overlapped.depth if self._overlapped else 1

    def submit(self, prepared: Sequence[NDArray[Any]]) -> Ticket:
        """Start prepared pictures as one batch, whose raw maps the ticket gives; the next may be started meanwhile."""
        return self._overlapped.submit(prepared) if self._overlapped else _Done(self.infer(prepared))

    def infer(self, prepared: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Run prepared pictures as one batch (for the `frame` graph they share one size); returns N,... raw maps."""
        return self.backend.infer(np.stack(prepared))

    def finish(self, raw: NDArray[Any], height: int, width: int) -> Float32:
        """One raw map of the batch as a mask of the picture's size, float32 0..1."""
        if self.takes_frames:
            return cast(Float32, raw.astype(np.float32) / np.float32(255))
        return self.postprocess.apply(raw[0], height, width)

    def __call__(self, image_HWC: UInt8) -> Float32:
        """The mask of one uint8 RGB picture H,W,3: float32 H,W in 0..1."""
        raw = self.infer([self.prepare(image_HWC)])
        return self.finish(raw[0], image_HWC.shape[0], image_HWC.shape[1])

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
