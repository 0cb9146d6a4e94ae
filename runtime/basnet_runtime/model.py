"""A backend with the preprocessing and postprocessing that belong to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Backend, FinishedInference, InferenceFuture, OverlappedBackend
from basnet_runtime.postprocess import Postprocessor
from basnet_torch.arrays import Float32, UInt8
from basnet_torch.errors import MediaError
from basnet_torch.files import Closing
from basnet_torch.spec import Postprocess, Preprocess

if TYPE_CHECKING:
    from basnet_runtime.engine_facts import Profile

__all__ = ["SaliencyModel"]


class SaliencyModel(Closing):
    """A model that computes raw maps of pictures; a context manager.

    >>> from basnet_runtime.backends.fake import FakeBackend
    >>> model = SaliencyModel(FakeBackend(), Preprocess(height=32, width=32), Postprocess(), "brightness")
    >>> model.mask(np.full((40, 60, 3), 255, np.uint8)).shape
    (40, 60)
    """

    def __init__(
        self,
        backend: Backend,
        preprocess: Preprocess,
        postprocess: Postprocess,
        name: str,
        profiles: tuple[Profile, ...] = (),
    ) -> None:
        """`name`: the model's name, usually its file's; `profiles`: its shapes, if few."""
        self.backend = backend
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.name = name
        self._profiles = profiles
        self._overlapped = backend if isinstance(backend, OverlappedBackend) else None

    @property
    def takes_frames(self) -> bool:
        """Whether the backend runs the `frame` graph: uint8 pictures, resized inside."""
        return self.backend.input.dtype == "uint8"

    def check_size(self, name: str, height: int, width: int) -> None:
        """Refuse a picture of a size that the engine was not built for.

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

    @property
    def plain_size(self) -> tuple[int, int]:
        """Height and width of a small picture that it certainly takes."""
        if self.takes_frames and self._profiles:
            _, height, width, *_ = self._profiles[0].best
            return height, width
        return 64, 64

    def prepare(self, image_HWC: UInt8) -> NDArray[Any]:
        """One uint8 RGB picture as the backend's input without the batch axis."""
        return image_HWC if self.takes_frames else self.preprocess.apply(image_HWC)

    def postprocessor(
        self, *, stabilize: bool = False, empty_weak: bool = False, stream: bool = False
    ) -> Postprocessor:
        """What makes masks of its raw maps; arguments as of `Postprocessor`."""
        return Postprocessor(
            self.preprocess,
            self.postprocess,
            takes_frames=self.takes_frames,
            name=self.name,
            stabilize=stabilize,
            empty_weak=empty_weak,
            stream=stream,
        )

    @property
    def depth(self) -> int:
        """Batches worth having in flight; 1 where a backend runs them in turn."""
        return self._overlapped.depth if self._overlapped else 1

    def submit(
        self, prepared: Sequence[NDArray[Any]], *, overlap: bool = True, is_busy: bool = False
    ) -> InferenceFuture:
        """Start preprocessed pictures as one batch; the future gives raw maps.

        The next batch may be started meanwhile.

        Without `overlap` nothing is set up for batches beside each other, and the batch has run when this returns.
        With `is_busy` others are on their way: the batch leaves threads to them.
        """
        if self._overlapped and overlap:
            return self._overlapped.submit(prepared, is_busy=is_busy)
        return FinishedInference(self.infer(prepared))

    def infer(self, prepared: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Run preprocessed pictures as one batch; returns N,... raw maps.

        For the `frame` graph they share one size.
        """
        return self.backend.infer(np.stack(prepared))

    def mask(self, image_HWC: UInt8) -> Float32:
        """Return the network's mask of a uint8 RGB picture H,W,3: float32 H,W in 0..1.

        Whatever the salience decision.
        """
        raw = self.infer([self.prepare(image_HWC)])
        return self.postprocessor().undecided(raw[0], *image_HWC.shape[:2])

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()
