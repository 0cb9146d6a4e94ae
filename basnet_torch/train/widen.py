"""Net2Net: widen a network without changing its output (1511.05641, section 2.1).

Every channel is repeated `factor` times in a row, so that joined feature maps keep their order, and each weight is
divided by the number of copies of its input. Copies would stay equal for ever, because they get equal gradients: a
little noise on the weights tells them apart.

Legend: O output channels, I input channels, K kernel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from basnet_torch.checkpoint import Checkpoint
from basnet_torch.errors import CheckpointError
from basnet_torch.model.structure import RESNET34

__all__ = ["widened"]


def widened(checkpoint: Checkpoint, width: int, *, noise: float = 0.01, seed: int = 0) -> Checkpoint:
    """The checkpoint's function in a network of `width` channels.

    Args:
        checkpoint: Any network of this package.
        width: A multiple of the checkpoint's.
        noise: Standard deviation of what is added to each convolution's weights, as a share of that of the weights;
            0 keeps the function to rounding.
        seed: Of the noise.

    Raises:
        CheckpointError: When the width is no multiple.
    """
    factor, rest = divmod(width, checkpoint.width)
    if rest or factor < 1:
        was = checkpoint.width
        raise CheckpointError(f"width {width} is no multiple of the checkpoint's {was}; ask {2 * was}, {3 * was}, ...")
    if factor == 1:
        return checkpoint
    if checkpoint.encoder != RESNET34:
        raise CheckpointError(f"width {width}: only a network on {RESNET34} is widened; leave --width out")
    with torch.device("meta"):
        wanted = replace(checkpoint, width=width).build().state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in checkpoint.state.items():
        wide = _repeated(value, wanted[name])
        if wide.ndim == 4 and noise:
            wide = wide + torch.randn(wide.shape, generator=generator) * (noise * float(wide.std(correction=0)))
        state[name] = wide
    return replace(checkpoint, width=width, state=state, metadata={})


def _repeated(value: Tensor, wanted: Tensor) -> Tensor:
    """A weight O,I,K,K or a value per channel O, repeated to the wanted shape; inputs share what one had."""
    if value.ndim == 0:
        return value.clone()
    value = value.repeat_interleave(wanted.shape[0] // value.shape[0], 0)
    if value.ndim == 1:
        return value
    copies = wanted.shape[1] // value.shape[1]
    return value.repeat_interleave(copies, 1) / copies
