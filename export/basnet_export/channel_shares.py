"""What part of a tensor's range each of its channels is quantised over, where the weights can take the rest.

    shares = channel_shares(observed, {"predict.encoder.stage1.0.conv1.relu": [kernel_OIHW]})

Channels differ by factors of ten, and over one range the quiet ones have a handful of steps. Dividing a channel by its
share before it becomes bytes, and multiplying the weights that read it, gives it more; but then the loudest channel's
weights decide the steps of all weights, and the others' become coarse against larger inputs. So shares are a power of
each channel's part of the range, and of some powers the one is taken by which both errors together are smallest:
G. Xiao et al., "SmoothQuant", ICML 2023, with the power chosen for each tensor.

Legend: O, I channels of output and input, S sampled positions, C channels of the tensor, which are I of its kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from basnet_export.activation_ranges import Observed
from basnet_export.kernel_rounding import LARGEST

__all__ = ["Shares", "channel_shares"]

Float32 = NDArray[np.float32]
Shares: TypeAlias = Mapping[str, Float32]

_POWERS = np.linspace(0, 1, 9)
_LEAST = 1 / 32  # a channel that was quiet on all calibration pictures may be louder on others
_STEPS = 255
_COMPENSATED = 1 / 16  # of the error of weights is left after `rounded_kernel`, as a variance: measured on basnet-lite


def channel_shares(observed: Mapping[str, Observed], kernels: Mapping[str, Sequence[Float32]]) -> dict[str, Float32]:
    """By tensor a share for each channel, in 1/32..1; tensors with negative values have none.

    Args:
        observed: What the tensors were on calibration pictures.
        kernels: By tensor the weights that read it, each O,I,H,W.
    """
    return {
        name: _best(observed[name], kernels_OIHW)
        for name, kernels_OIHW in kernels.items()
        if observed[name].low >= 0 < observed[name].high
    }


def _best(tensor: Observed, kernels_OIHW: Sequence[Float32]) -> Float32:
    part_C = np.maximum(tensor.high_C / tensor.high, _LEAST).astype(np.float32)
    choices = [(part_C**power).astype(np.float32) for power in _POWERS]
    return min(choices, key=lambda share_C: sum(_error(tensor, share_C, kernel) for kernel in kernels_OIHW))


def _error(tensor: Observed, share_C: Float32, kernel_OIHW: Float32) -> float:
    """Expected squared error of what the kernel gives, up to a factor: a step's own error is spread evenly over it."""
    step_C = share_C * np.float32(tensor.high / _STEPS)
    filled_C = (tensor.sample_SC > 0).mean(axis=0)  # zero is exact
    inputs = float(np.sum(step_C**2 * filled_C * np.square(kernel_OIHW).sum(axis=(0, 2, 3))))
    step_O = (np.abs(kernel_OIHW).max(axis=(2, 3)) * share_C).max(axis=1) / np.float32(LARGEST)
    squares_C = np.square(tensor.sample_SC).mean(axis=0) / share_C**2
    weights = np.sum(step_O**2) * np.sum(squares_C) * kernel_OIHW[0, 0].size
    return inputs + _COMPENSATED * float(weights)
