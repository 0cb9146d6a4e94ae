"""The NVIDIA GPU of this machine, asked of its driver. The only module that imports cuda.core."""

from __future__ import annotations

from dataclasses import dataclass

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
    try:
        device = Device(index)
        device.set_current()  # fails where the device is hidden or the driver too old
        capability = device.compute_capability
        driver = ".".join(map(str, system.get_user_mode_driver_version()))
    except Exception as error:  # any failure of the driver means the same to a user
        line = " ".join(str(error).split())[:200]
        raise BackendUnavailable(f"device cuda:{index}: CUDA cannot use it ({line}); run nvidia-smi") from error
    return Gpu(name=str(device.name), compute_capability=f"{capability.major}.{capability.minor}", driver=driver)
