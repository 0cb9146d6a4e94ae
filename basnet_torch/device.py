"""The device a network runs on: the parsed value of `--device`, for all commands.

Device.parse("rtx:1").for_torch()  # "cuda:1"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, get_args

from basnet_torch.errors import UsageError

__all__ = ["CPU", "Device", "DeviceKind"]

DeviceKind = Literal["cpu", "openvino", "cuda", "tensorrt", "rtx"]
_KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
_ON_CPU = ("cpu", "openvino")
_RULE = "give cpu or openvino, or cuda, tensorrt or rtx, alone or as cuda:N"


@dataclass(frozen=True, slots=True)
class Device:
    """The CPU or one GPU, and what of a library is to run there.

    Attributes:
        kind: `cpu`; `openvino`, ONNX Runtime's provider for the CPU; `cuda`; `tensorrt` or `rtx`, ONNX Runtime's
            providers for a CUDA device.
        index: Which GPU; None where none was named, and always for the CPU.
    """

    kind: DeviceKind = "cpu"
    index: int | None = None

    @classmethod
    def parse(cls, text: str | Self, *, of: tuple[DeviceKind, ...] = _KINDS, rule: str = _RULE) -> Self:
        """The device of that name; a device stays as it is.

        Args:
            text: `KIND`, or for a GPU `KIND:N`.
            of: Kinds that are allowed.
            rule: Ends the error of any other, for people.

        Raises:
            UsageError: It is no device, or of another kind.

        >>> Device.parse("cuda:1")
        Device(kind='cuda', index=1)
        """
        if isinstance(text, cls):
            found: Self | None = text
        else:
            kind, colon, index = str(text).partition(":")
            known = next((name for name in _KINDS if name == kind), None)
            whole = not colon or (index.isascii() and index.isdecimal() and known not in _ON_CPU)
            found = cls(known, int(index) if index else None) if known and whole else None
        if found is None or found.kind not in of:
            raise UsageError(f"device {text}: {rule}")
        return found

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes."""
        return self.kind in _ON_CPU

    @property
    def number(self) -> int:
        """Which GPU, the first where none was named."""
        return self.index or 0

    def for_torch(self) -> str:
        """The same piece of hardware as PyTorch names it."""
        return "cpu" if self.on_cpu else str(Device("cuda", self.index))

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


CPU = Device()
