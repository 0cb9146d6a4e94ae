"""Kernels rounded to eight bits so that what a layer gives changes least: what rounding one weight loses, others get.

    moments = second_moments(checkpoint, pictures, shares, seed=0)
    kernel_OIHW = rounded_kernel(kernel_OIHW, moments["predict.encoder.stage1.0.conv1"])

Weights of a channel are taken one after the other, and the error of each is put on those that are still to come, by how
much their inputs go together on calibration pictures: E. Frantar et al., "GPTQ", ICLR 2023, in the order of the inputs'
strength.

Legend: O, I channels of output and input, K = I times height times width of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from basnet_runtime.parity import Picture
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["LARGEST", "Kernels", "Moments", "rounded_kernel", "second_moments"]

Float32 = NDArray[np.float32]
Moments: TypeAlias = "Mapping[str, torch.Tensor]"
Kernels: TypeAlias = Mapping[str, Float32]

LARGEST = 127  # whole number that a weight becomes
_PATCHES = 3  # of each weight's input, so that the moments have full rank
_DAMPING = 0.01  # of the mean second moment: patches are few, and a matrix must be inverted
_BLOCK = 64  # weights between two updates of all that are to come


def second_moments(
    checkpoint: Checkpoint, pictures: Sequence[Picture], names: Sequence[str], seed: int = 0
) -> dict[str, torch.Tensor]:
    """What the inputs of each kernel's weights are together, summed over patches of the pictures.

    Args:
        checkpoint: The network; it runs in PyTorch FP32.
        pictures: Calibration pictures.
        names: Of convolutions, as the checkpoint calls them.
        seed: Which patches are taken.

    Returns:
        By name a float32 matrix K,K.
    """
    import torch
    from torch import nn

    from basnet_torch.checkpoint import model_from_checkpoint

    network = model_from_checkpoint(checkpoint).eval()
    generator = torch.Generator().manual_seed(seed)
    moments: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def taken(module: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
            patches_KP = _patches(module, inputs[0], len(pictures), generator)
            product = patches_KP @ patches_KP.T
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
    """Some of the patches that the convolution sees, as columns: K,P."""
    import torch
    from torch.nn import functional

    size, padding = module.kernel_size, module.padding
    unfolded_KP = functional.unfold(image_NCHW, size, module.dilation, padding, module.stride)[0]
    wanted = min(unfolded_KP.shape[1], max(256, _PATCHES * unfolded_KP.shape[0] // pictures))
    return unfolded_KP[:, torch.randperm(unfolded_KP.shape[1], generator=generator)[:wanted]]


def rounded_kernel(kernel_OIHW: Float32, moments_KK: torch.Tensor, share_I: Float32 | None = None) -> Float32:
    """Weights that are whole multiples of their channel's step, a 127th of its largest weight.

    Args:
        kernel_OIHW: The weights.
        moments_KK: Of what they are multiplied with, from `second_moments`.
        share_I: What each input channel was divided by; the weights are multiplied with it first.

    Returns:
        The new weights of the same shape; each channel's largest stays its largest, so that its step does too.
    """
    import torch

    weights = torch.from_numpy(kernel_OIHW.astype(np.float64))
    moments = moments_KK.double()
    if share_I is not None:
        share = torch.from_numpy(share_I).double()
        weights = weights * share[None, :, None, None]
        by_weight = share.repeat_interleave(kernel_OIHW[0, 0].size)
        moments = moments / by_weight[:, None] / by_weight[None, :]
    flat_OK = weights.flatten(1)
    step_O1 = flat_OK.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    whole = _compensated(flat_OK / step_O1, moments)
    # A largest weight that was rounded down would make every other step of its channel finer than it was taken for.
    largest_O1 = flat_OK.abs().argmax(1, keepdim=True)
    whole.scatter_(1, largest_O1, LARGEST * flat_OK.gather(1, largest_O1).sign())
    return (whole * step_O1).reshape(kernel_OIHW.shape).float().numpy()


def _compensated(wanted_OK: torch.Tensor, moments_KK: torch.Tensor) -> torch.Tensor:
    """Whole numbers from -127 to 127, those whose inputs are largest taken first."""
    import torch

    diagonal = moments_KK.diagonal()
    order = diagonal.argsort(descending=True)
    damped = moments_KK[order][:, order]
    damped.diagonal().add_(_DAMPING * diagonal.mean().clamp_min(torch.finfo(torch.float32).tiny))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left = wanted_OK[:, order].clone()
    whole = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, left.shape[1]))
        errors = torch.empty_like(left[:, block])
        for column in range(block.start, block.stop):
            whole[:, column] = left[:, column].round().clamp(-LARGEST, LARGEST)
            error = (left[:, column] - whole[:, column]) / factor[column, column]
            left[:, column : block.stop] -= error[:, None] * factor[column, column : block.stop]
            errors[:, column - start] = error
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return whole[:, order.argsort()]
