"""The `tensor` and `frame` graphs as torch modules with one input and one output.

Legend: N pictures, C channels, H height, W width of the picture; the network's own size is fixed by `Preprocess`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basnet_torch.model.basnet import SaliencyNetwork
from basnet_torch.spec import Postprocess, Preprocess

__all__ = ["FrameGraph", "TensorGraph"]


class TensorGraph(nn.Module):
    """`image` float32 N,3,H,W to `mask` float32 N,1,H,W; the sigmoid is FP32."""

    def __init__(self, network: SaliencyNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        """Return the deployed map alone, so that side outputs are pruned."""
        return torch.sigmoid(self.network(image.to(self.dtype))[0].float())


class FrameGraph(nn.Module):
    """`frame` uint8 N,H,W,3 RGB of any size to `mask` uint8 N,H,W.

    TensorRT allows bytes only at the edges: a cast comes first and last, and nothing between them touches uint8.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, tensor: TensorGraph, preprocess: Preprocess, postprocess: Postprocess) -> None:
        super().__init__()
        self.tensor = tensor
        self.preprocess = preprocess
        self.postprocess = postprocess
        # Where the divisor is the picture's own largest value, it is applied in forward.
        gain, offset = preprocess.affine(255.0 if preprocess.scale == "255" else 1.0)
        self.register_buffer("gain", _per_channel(gain))
        self.register_buffer("offset", _per_channel(offset))

    def forward(self, frame: Tensor) -> Tensor:
        """Compute masks at the pictures' size."""
        height, width = frame.shape[1:3]
        picture = frame.float().permute(0, 3, 1, 2)
        mask = self.stretched(self.tensor(self.preprocessed(picture)))
        mask = _resize(mask, height, width)
        return (mask[:, 0] * 255).round().clamp(0, 255).to(torch.uint8)

    def preprocessed(self, picture: Tensor) -> Tensor:
        """`Preprocess.apply` for N,3,H,W in 0..255."""
        resized = _resize(picture, self.preprocess.height, self.preprocess.width)
        if self.preprocess.scale == "255":
            return resized * self.gain + self.offset
        peak = resized.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        return resized * (self.gain / peak) + self.offset

    def stretched(self, mask: Tensor) -> Tensor:
        """`Postprocess.stretched` for N,1,h,w, each picture by its own range."""
        if not self.postprocess.stretch:
            return mask
        low, high = mask.amin(dim=(1, 2, 3), keepdim=True), mask.amax(dim=(1, 2, 3), keepdim=True)
        span = high - low
        usable = (high >= self.postprocess.empty_below) & (span >= 1e-6)
        return torch.where(usable, (mask - low) / span.clamp(min=1e-6), mask)


def _per_channel(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    return torch.from_numpy(values).reshape(1, 3, 1, 1)


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    """The same resampling as `spec.resize_bilinear`."""
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=False)
