"""Facts of a plan: its library, its GPU, and what it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from basnet_runtime.kinds import FLAVOR_NAMES, Flavor

__all__ = ["EngineFacts", "Profile", "Shape", "gpus_of"]

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """The shapes an engine takes: smallest, the one it is tuned for, and largest."""

    smallest: Shape
    best: Shape
    largest: Shape

    def __post_init__(self) -> None:
        if not all(a <= b <= c for a, b, c in zip(self.smallest, self.best, self.largest, strict=True)):
            raise ValueError(f"profile {self}: each axis must grow from smallest to best to largest")

    def holds(self, shape: Shape) -> bool:
        """Whether a batch of this shape can run."""
        return len(shape) == len(self.best) and all(
            a <= n <= b for a, n, b in zip(self.smallest, shape, self.largest, strict=True)
        )

    def __str__(self) -> str:
        return " / ".join("x".join(map(str, getattr(self, name))) for name in self.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFacts:
    """One plan.

    Attributes:
        flavor: `tensorrt` or `rtx`.
        version: Of the library that built it.
        gpu: The device it was built on; empty when it was built without one.
        compute_capabilities: What it was built for, such as `9.0`; empty where the library decides at run time.
        driver: Version of the GPU's driver at build, such as `580.65.06`; empty without a device.
        cuda: Version of CUDA that this driver supports, such as `13.0`; empty without a device.
        plan_sha256: Digest of the plan.
        plan_bytes: Its size.
        profiles: Shapes of its one input.
        flags: What else was asked of the builder.
        build_seconds: How long it took.
        typed_layers: Share of the convolutions that compute in the precision the plan is named after, 0..1.
        typed_flops: Their share of the convolutions' arithmetic, 0..1.
        typed_by: Who says so: the typed `network`, or the library's `inspector` of the finished engine.
    """

    flavor: Flavor
    version: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    driver: str
    plan_sha256: str
    plan_bytes: int
    profiles: tuple[Profile, ...]
    build_seconds: float
    typed_layers: float
    typed_flops: float
    flags: Mapping[str, Any] = field(default_factory=dict)
    cuda: str = ""
    typed_by: str = "network"

    @property
    def library(self) -> str:
        """Name and version of the library, for people."""
        return f"{FLAVOR_NAMES[self.flavor]} {self.version}"


_GPUS = {
    "7.5": "GeForce RTX 20",
    "8.0": "A100",
    "8.6": "GeForce RTX 30",
    "8.7": "Jetson Orin",
    "8.9": "GeForce RTX 40",
    "9.0": "H100, H200",
    "10.0": "B200",
    "12.0": "GeForce RTX 50",
    "12.1": "GB10",
}


def gpus_of(facts: EngineFacts) -> str:
    """The GPUs that a plan is for, by compute capability and as they are sold."""
    if facts.gpu or not facts.compute_capabilities:
        return facts.gpu or "every GPU that the library supports"
    return ", ".join(f"{each} ({_GPUS[each]})" if each in _GPUS else each for each in facts.compute_capabilities)
