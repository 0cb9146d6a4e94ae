"""The NVIDIA GPU of this machine, asked of its driver. The only module that imports cuda.core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from basnet_runtime.tensorrt_library import has_nvidia_driver
from basnet_torch.errors import BackendUnavailable

__all__ = ["Gpu", "find_gpu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One device.

    Attributes:
        name: As its maker calls it.
        compute_capability: Such as `9.0`.
        driver: Version of CUDA that the driver supports, such as `13.0`.
    """

    name: str
    compute_capability: str
    driver: str


def find_gpu(index: int = 0) -> Gpu | None:
    """The device of that index, or None where there is no NVIDIA driver.

    Raises:
        BackendUnavailable: cuda-core is not installed, or there is no such device.
    """
    if not has_nvidia_driver():
        return None
    try:
        from cuda.core import Device, system
    except ImportError as error:
        raise BackendUnavailable("cuda-core is not installed; pip install cuda-core cuda-bindings") from error
    count = _number(system)
    if index >= count:
        raise BackendUnavailable(f"device cuda:{index}: the NVIDIA driver shows {count} devices")
    device = Device(index)
    capability = device.compute_capability
    return Gpu(
        name=str(device.name), compute_capability=f"{capability.major}.{capability.minor}", driver=_driver(system)
    )


def _number(system: Any) -> int:
    try:
        return int(system.get_num_devices())
    except Exception as error:
        raise BackendUnavailable(f"the NVIDIA driver does not answer ({error}); run nvidia-smi") from error


def _driver(system: Any) -> str:
    return ".".join(map(str, system.get_user_mode_driver_version()))
