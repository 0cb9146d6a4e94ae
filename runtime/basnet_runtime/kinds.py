"""Names of choices: output kinds, formats, backends, precisions, flavors.

Imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast, get_args

from basnet_torch.errors import UsageError
from basnet_torch.files import file_identity

__all__ = [
    "FLAVOR_NAMES",
    "KINDS",
    "BackendName",
    "Flavor",
    "HwAccel",
    "KindName",
    "OutputKind",
    "PictureFormat",
    "Precision",
]

BackendName = Literal["pytorch", "onnxruntime", "openvino", "tensorrt", "onnx-reference"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
HwAccel = Literal["auto", "none", "cuda"]
PictureFormat = Literal["png", "jpg", "webp", "tiff"]  # of results
Flavor = Literal["tensorrt", "rtx"]
FLAVOR_NAMES: dict[Flavor, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}
KindName = Literal["mask", "cutout", "overlay", "side", "color", "image", "blur"]
KINDS: tuple[KindName, ...] = get_args(KindName)
_USAGE = "mask, cutout, overlay, side, color:#rrggbb, image:FILE or blur"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputKind:
    """Which result to make.

    Attributes:
        name: The kind.
        color: RGB 0..255, for `color`.
        image: The background's file, for `image`.
    """

    name: KindName = "mask"
    color: tuple[int, int, int] = (255, 255, 255)
    image: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an output kind, such as `mask`, `color:#rrggbb` or `image:FILE`.

        Raises:
            UsageError: It is none of these.

        >>> OutputKind.parse("color:#ff8000").color
        (255, 128, 0)
        """
        name, _, value = text.partition(":")
        if name == "color" and (digits := re.fullmatch(r"#?([0-9a-fA-F]{6})", value)):
            return cls(name="color", color=cast("tuple[int, int, int]", tuple(bytes.fromhex(digits[1]))))
        if name == "image" and value:
            return cls(name="image", image=Path(value))
        if name in KINDS and name not in ("color", "image") and not value:
            return cls(name=name)
        raise UsageError(f"kind is {text!r}; it must be {_USAGE}")

    @property
    def identity(self) -> str:
        """Return the identity of a kind; a background file counts by size and time."""
        if self.image is None or not self.image.is_file():
            return str(self)
        return " ".join(map(str, (self, *file_identity(self.image))))

    @property
    def has_alpha(self) -> bool:
        """Whether the result is transparent."""
        return self.name == "cutout"
