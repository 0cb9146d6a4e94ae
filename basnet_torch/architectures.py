"""The networks by name: BASNet, BASNet without refinement, and the baselines they are compared with."""

from __future__ import annotations

from collections.abc import Mapping

from basnet_torch.baselines import FCN, HED, SegNet, UNet
from basnet_torch.config import Arch
from basnet_torch.model import BASNet, CoarseBASNet, SaliencyNetwork

__all__ = ["ARCHITECTURES", "build"]

ARCHITECTURES: Mapping[str, type[SaliencyNetwork]] = {
    network.arch: network for network in (BASNet, CoarseBASNet, FCN, SegNet, UNet, HED)
}


def build(arch: Arch, width: int) -> SaliencyNetwork:
    """A freshly initialised network.

    >>> build("hed", 2).arch
    'hed'
    """
    return ARCHITECTURES[arch](width)
