"""TensorRT for RTX as a plug-in provider of ONNX Runtime.

The package is `onnxruntime-ep-nv-tensorrt-rtx`.

devices = rtx_devices(onnxruntime)
options.add_provider_for_devices([devices[0]], rtx_options())

The package is found by its metadata and imported only here, when a device `rtx` is opened: its import writes links into
its own folder, changes LD_LIBRARY_PATH and loads 234 MB, which the library of `tensorrt_rtx` would then give way to.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from basnet_runtime.backends.cache import can_keep_optimized_models, optimized_model_folder
from basnet_runtime.backends.plugins import NoDevices, registered_devices
from basnet_runtime.machine.installed import has_nvidia_driver, installed_version
from basnet_torch.errors import BackendUnavailable

__all__ = ["RTX_PACKAGES", "is_rtx_plugin_loaded", "rtx_devices", "rtx_options", "rtx_plugin_version", "why_no_rtx"]

RTX_PACKAGES = (
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
)
_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"
_ENGINE = "build an engine with 'basnet-export engine --flavor rtx'"


def rtx_plugin_version() -> str | None:
    """The installed plug-in's version; nothing is imported."""
    return next(filter(None, map(installed_version, RTX_PACKAGES)), None)


def is_rtx_plugin_loaded() -> bool:
    """Tell whether this process has imported the plug-in.

    The bindings of TensorRT for RTX then use its library.
    """
    return _MODULE in sys.modules


def rtx_devices(ort: ModuleType) -> list[Any]:
    """The GPUs that the plug-in runs on.

    Raises:
        BackendUnavailable: The plug-in or the driver is missing, it does not load, or it runs on no GPU here.
    """
    found = _devices_of(ort)
    if isinstance(found, NoDevices):
        raise BackendUnavailable(f"device rtx: {found.reason}; {found.fix}")
    return found


def why_no_rtx(ort: ModuleType) -> NoDevices | None:
    """None where `rtx_devices` has some."""
    found = _devices_of(ort)
    return found if isinstance(found, NoDevices) else None


def _devices_of(ort: ModuleType) -> list[Any] | NoDevices:
    if rtx_plugin_version() is None:
        there = ", ".join(ort.get_available_providers())
        return NoDevices(
            reason=f"this ONNX Runtime has {there} but no NvTensorRTRTXExecutionProvider",
            fix=f"pip install 'basnet-deploy[rtx-ep]', or {_ENGINE}",
        )
    if not has_nvidia_driver():  # asked before the import, because registering would fail on libcuda
        return NoDevices(
            reason="its plug-in for ONNX Runtime runs on an RTX GPU, and this machine has no NVIDIA driver",
            fix="use --device cpu",
        )
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except (ImportError, OSError) as error:
        return NoDevices(
            reason=f"its plug-in for ONNX Runtime cannot be imported ({str(error).splitlines()[0][:160]})",
            fix=f"pip install --force-reinstall {RTX_PACKAGES[0]}",
            is_fault=True,
        )
    return registered_devices(ort, plugin, RTX_PACKAGES[0], lambda _: True) or NoDevices(
        reason="its plug-in for ONNX Runtime offers no GPU here, only compute capability 8.6, 8.9 and from 12.0 on",
        fix="use --device cuda, or --device tensorrt",
    )


def rtx_options() -> dict[str, str]:
    """Return the provider's options; compiled kernels go beside the optimized models."""
    kept = (
        {"nv_runtime_cache_path": str(optimized_model_folder() / "rtx-kernels")} if can_keep_optimized_models() else {}
    )
    return {"enable_cuda_graph": "0", **kept}
