"""From a name and an index to a CUDA device, or the reason why not."""

from __future__ import annotations

from typing import get_args

from basnet_runtime.cuda.base import Cuda, CudaName, Gpu
from basnet_runtime.machine.installed import has_nvidia_driver
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = ["find_gpu", "open_cuda"]


def open_cuda(index: int = 0, name: CudaName = "cuda-core") -> Cuda:
    """The device of that index by that library.

    Raises:
        BackendUnavailable: The library is not installed, or there is no such device.
        UsageError: There is no such library.
    """
    if name not in get_args(CudaName):
        raise UsageError(f"cuda {name!r}: it must be {' or '.join(get_args(CudaName))}")
    if not has_nvidia_driver():
        raise BackendUnavailable(f"device cuda:{index}: there is no NVIDIA driver")
    try:
        return _opened(index, name)
    except ImportError as error:
        packages = "cuda-core cuda-bindings" if name == "cuda-core" else "pycuda"
        raise BackendUnavailable(f"{name} cannot be loaded ({error}); pip install {packages}") from error
    except Exception as error:  # any failure of the driver means the same to a user
        line = " ".join(str(error).split())[:200]
        raise BackendUnavailable(f"device cuda:{index}: CUDA cannot use it ({line}); run nvidia-smi") from error


def _opened(index: int, name: CudaName) -> Cuda:
    if name == "cuda-core":
        from basnet_runtime.cuda.cuda_core import CudaCore

        return CudaCore(index)
    from basnet_runtime.cuda.py_cuda import PyCuda

    return PyCuda(index)


def find_gpu() -> Gpu | None:
    """What the first device is, or None where there is no NVIDIA driver.

    Raises:
        BackendUnavailable: See `open_cuda`.
    """
    if not has_nvidia_driver():
        return None
    cuda = open_cuda(0, "cuda-core")
    try:
        return cuda.gpu
    finally:
        cuda.close()
