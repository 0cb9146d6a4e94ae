"""The networks by name: BASNet, BASNet without refinement, and the baselines."""

from __future__ import annotations

from collections.abc import Mapping

from basnet_torch.model.baselines import FCN, HED, SegNet, UNet
from basnet_torch.model.basnet import BASNet, CoarseBASNet, SaliencyNetwork
from basnet_torch.model.structure import DECODER_WIDTHS, RESNET34, Arch

__all__ = ["ARCHITECTURES", "build_network"]

ARCHITECTURES: Mapping[str, type[SaliencyNetwork]] = {
    network.arch: network for network in (BASNet, CoarseBASNet, FCN, SegNet, UNet, HED)
}


def build_network(
    arch: Arch, width: int, *, encoder: str = RESNET34, decoder_widths: tuple[int, ...] = DECODER_WIDTHS
) -> SaliencyNetwork:
    """Return a freshly initialized network.

    `encoder` and `decoder_widths` are of BASNet alone.

    >>> build_network("hed", 2).arch
    'hed'
    """
    kind = ARCHITECTURES[arch]
    if issubclass(kind, BASNet | CoarseBASNet):
        return kind(width, encoder=encoder, decoder_widths=decoder_widths)
    return kind(width)
