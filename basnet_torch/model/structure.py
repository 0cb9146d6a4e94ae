"""Names and numbers that say which network it is; loads no torch."""

from __future__ import annotations

import re
from typing import Literal

from basnet_torch.errors import UsageError

__all__ = ["DECODER_WIDTHS", "RESNET34", "Arch", "check_structure", "named"]

Arch = Literal["basnet", "basnet-coarse", "fcn", "segnet", "unet", "hed"]

RESNET34 = "resnet34"  # the paper's encoder, which the authors' checkpoint needs
DECODER_WIDTHS = (112, 96, 64, 32, 16)
_ENCODERS = (RESNET34, "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
_WRITTEN = {
    "basnet": "BASNet",
    "basnet-coarse": "BASNet without refinement",
    "fcn": "FCN",
    "segnet": "SegNet",
    "unet": "U-Net",
    "hed": "HED",
}


def named(arch: str) -> str:
    """Return the architecture's usual spelling; an unknown name stays unchanged.

    >>> named("unet")
    'U-Net'
    """
    return _WRITTEN.get(arch, arch)


def check_structure(arch: str, encoder: str, decoder_widths: tuple[int, ...]) -> None:
    """Check that a network can be built of these.

    Raises:
        UsageError: Naming the value and its rule.
    """
    if encoder not in _ENCODERS and not re.fullmatch(r"timm:[\w.\-]+", encoder):
        raise UsageError(f"encoder is {encoder!r}; it must be one of {', '.join(_ENCODERS)} or timm:NAME")
    if encoder != RESNET34 and arch not in ("basnet", "basnet-coarse"):
        raise UsageError(f"encoder {encoder}: arch {arch} is built on resnet34; leave --encoder out")
    if len(decoder_widths) != 5 or min(decoder_widths) < 1:
        raise UsageError(f"decoder_widths is {decoder_widths}; it must be five numbers, each at least 1")
