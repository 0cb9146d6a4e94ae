"""GPTQ: round kernels to eight bits so that the layer's output changes least.

    moments = second_moments(checkpoint, pictures, shares, seed=0)
    kernel_OIHW = gptq_kernel(kernel_OIHW, moments["predict.encoder.stage1.0.conv1"])

Weights of a channel are taken one after the other, and the error of each is put on those that are still to come, by how
much their inputs go together on calibration pictures: E. Frantar et al., "GPTQ", ICLR 2023, in the order of the inputs'
strength.

Legend: G groups of channels (1, or as many as channels in a depthwise layer), O, I channels of output and input of a
group, K = I times height times width of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    import torch

    from basnet_runtime.parity import Picture
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["LARGEST", "Kernels", "gptq_kernel", "second_moments"]

Kernels: TypeAlias = Mapping[str, Float32]

LARGEST = 127  # whole number that a weight becomes
_PATCHES = 3  # of each weight's input, so that the moments have full rank
_DAMPING = 0.01  # of the mean second moment: patches are few, and a matrix must be inverted
_BLOCK = 64  # weights between two updates of all that are to come


def second_moments(
    checkpoint: Checkpoint, pictures: Sequence[Picture], names: Sequence[str], seed: int = 0
) -> dict[str, torch.Tensor]:
    """Sum second moments of each kernel's inputs over patches of the pictures.

    Args:
        checkpoint: The network; it runs in PyTorch FP32.
        pictures: Calibration pictures.
        names: Of convolutions, as the checkpoint calls them.
        seed: Which patches are taken.

    Returns:
        By name float32 matrices G,K,K, one for each group of channels.
    """
    import torch
    from torch import nn

    from basnet_torch.checkpoint import model_from_checkpoint

    network = model_from_checkpoint(checkpoint).eval()
    generator = torch.Generator().manual_seed(seed)
    moments: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def taken(module: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
            patches_GKP = _patches(module, inputs[0], len(pictures), generator)
            product = patches_GKP @ patches_GKP.mT
            moments[name] = moments[name] + product if name in moments else product

        return taken

    for name, module in network.named_modules():
        if name in names:
            module.register_forward_pre_hook(cast(Any, watch(name)))
    with torch.no_grad():
        for picture in pictures:
            network.mask(torch.from_numpy(checkpoint.preprocess.apply(picture.image_HWC))[None])
    return moments


def _patches(module: Any, image_NCHW: torch.Tensor, pictures: int, generator: torch.Generator) -> torch.Tensor:
    """Sample input patches of each group as columns G,K,P."""
    import torch
    from torch.nn import functional

    size, padding = module.kernel_size, module.padding
    unfolded_KP = functional.unfold(image_NCHW, size, module.dilation, padding, module.stride)[0]
    unfolded_GKP = unfolded_KP.reshape(module.groups, -1, unfolded_KP.shape[1])
    wanted = min(unfolded_GKP.shape[2], max(256, _PATCHES * unfolded_GKP.shape[1] // pictures))
    return unfolded_GKP[:, :, torch.randperm(unfolded_GKP.shape[2], generator=generator)[:wanted]]


def gptq_kernel(kernel_OIHW: Float32, moments_GKK: torch.Tensor, scale_C: Float32 | None = None) -> Float32:
    """Round weights to multiples of a 127th of their channel's largest.

    Args:
        kernel_OIHW: The weights, the output channels of all groups after each other.
        moments_GKK: Of what they are multiplied with, from `second_moments`.
        scale_C: What each input channel was divided by; the weights are multiplied with it first.

    Returns:
        The new weights of the same shape; each channel's largest stays its largest, so that its step does too.
    """
    import torch

    groups = len(moments_GKK)
    weights_GOIHW = torch.from_numpy(kernel_OIHW.astype(np.float64).reshape(groups, -1, *kernel_OIHW.shape[1:]))
    moments = moments_GKK.double()
    if scale_C is not None:
        scale_GI = torch.from_numpy(scale_C).double().reshape(groups, -1)
        weights_GOIHW = weights_GOIHW * scale_GI[:, None, :, None, None]
        by_weight = scale_GI.repeat_interleave(kernel_OIHW[0, 0].size, dim=1)
        moments = moments / by_weight[:, :, None] / by_weight[:, None, :]
    flat_GOK = weights_GOIHW.flatten(2)
    step_GO1 = flat_GOK.abs().amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    whole = _compensated(flat_GOK / step_GO1, moments)
    # A largest weight that was rounded down would make every other step of its channel finer than it was taken for.
    largest_GO1 = flat_GOK.abs().argmax(2, keepdim=True)
    whole.scatter_(2, largest_GO1, LARGEST * flat_GOK.gather(2, largest_GO1).sign())
    return (whole * step_GO1).reshape(kernel_OIHW.shape).float().numpy()


def _compensated(wanted_GOK: torch.Tensor, moments_GKK: torch.Tensor) -> torch.Tensor:
    """Round to integers in -127..127, weights with the largest inputs first."""
    import torch

    diagonal_GK = moments_GKK.diagonal(dim1=1, dim2=2)
    order_GK = diagonal_GK.argsort(dim=1, descending=True)
    rows = order_GK[:, :, None].expand_as(moments_GKK)
    columns = order_GK[:, None, :].expand_as(moments_GKK)
    damped = moments_GKK.gather(1, rows).gather(2, columns)
    damping = _DAMPING * diagonal_GK.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    damped.diagonal(dim1=1, dim2=2).add_(damping)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    across = order_GK[:, None, :].expand_as(wanted_GOK)
    left = wanted_GOK.gather(2, across)
    whole = torch.empty_like(left)
    for start in range(0, left.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, left.shape[2]))
        errors = torch.empty_like(left[:, :, block])
        for column in range(block.start, block.stop):
            whole[:, :, column] = left[:, :, column].round().clamp(-LARGEST, LARGEST)
            error_GO = (left[:, :, column] - whole[:, :, column]) / factor[:, column, column, None]
            left[:, :, column : block.stop] -= error_GO[:, :, None] * factor[:, None, column, column : block.stop]
            errors[:, :, column - start] = error_GO
        left[:, :, block.stop :] -= errors @ factor[:, block, block.stop :]
    return torch.empty_like(whole).scatter_(2, across, whole)
