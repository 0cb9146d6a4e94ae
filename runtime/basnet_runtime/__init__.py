"""BASNet inference on pictures and video, on any backend, with validated masks.

    import basnet_runtime as bn

    model = bn.load()                       # or bn.load("basnet.onnx"), bn.load("basnet.pth")
    mask = model(image)                     # array, PIL picture or path in; float32 0..1 of its size out
    masks = model([image, "photo.jpg"])     # several at once, of any sizes
    rgba = model.cutout("photo.jpg")        # the object alone, uint8 H,W,4
    model.salience(image).salient           # whether there is anything
    for frame in model.video("clip.mp4", stabilize=True):
        frame.seconds, frame.mask

Importing this package loads no torch, onnxruntime or openvino; opening a model loads the one that runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basnet_runtime.api import Predictor, load

__all__ = ["Predictor", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from basnet_runtime import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
