"""OpenVINO as a plug-in provider of ONNX Runtime, with an OpenVINO of its own.

devices = openvino_devices(onnxruntime)
options.add_provider_for_devices(devices, openvino_options(threads=2, streams=1, keep=True))

ONNX Runtime's own INT8 kernels want every value between layers in bytes; OpenVINO's do not, and use a CPU's AMX.
"""

from __future__ import annotations

import json
import platform
import sys
from types import ModuleType
from typing import Any

from basnet_runtime.backends.cache import can_keep_optimized_models, optimized_model_folder
from basnet_runtime.backends.plugins import NoDevices, registered_devices
from basnet_torch.errors import BackendUnavailable

__all__ = ["has_plugin_here", "openvino_devices", "openvino_options", "openvino_version", "why_no_devices"]

_PACKAGE = "onnxruntime-ep-openvino"


def openvino_devices(ort: ModuleType) -> list[Any]:
    """Return the CPU as the plug-in's device; loads the plug-in once in a process.

    Raises:
        BackendUnavailable: The plug-in is not installed or does not load, or does not support this ONNX Runtime or this
            CPU.
    """
    found = _devices_of(ort)
    if isinstance(found, NoDevices):
        raise BackendUnavailable(f"device openvino: {found.reason}; {found.fix}")
    return found


def why_no_devices(ort: ModuleType) -> NoDevices | None:
    """None where `openvino_devices` has some."""
    found = _devices_of(ort)
    return found if isinstance(found, NoDevices) else None


def _devices_of(ort: ModuleType) -> list[Any] | NoDevices:
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError:
        return _why_no_plugin()
    return registered_devices(
        ort, plugin, _PACKAGE, lambda device: device.ep_metadata.get("ov_device") == "CPU"
    ) or NoDevices(
        reason="its plug-in for ONNX Runtime runs on CPUs of Intel alone and offers nothing on this one",
        fix="use --backend openvino, which has no such limit, or --device cpu",
    )


def _why_no_plugin() -> NoDevices:
    if not has_plugin_here():
        return NoDevices(reason="there is no plug-in for ONNX Runtime on this platform", fix="use --device cpu")
    return NoDevices(
        reason="its plug-in for ONNX Runtime is not installed", fix="pip install 'basnet-deploy[openvino-ep]'"
    )


def has_plugin_here() -> bool:
    """Whether there is a plug-in to install on this platform."""
    return platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin"


def openvino_version() -> str:
    """The plug-in's own version; that of OpenVINO in it is not told."""
    from importlib.metadata import version

    return version(_PACKAGE)


def openvino_options(*, threads: int, streams: int, keep: bool) -> dict[str, str]:
    """The provider's options.

    Args:
        threads: CPU threads of all streams together.
        streams: Batches that run beside each other.
        keep: Whether the compiled model is kept for the next start.
    """
    config = {
        "INFERENCE_PRECISION_HINT": "f32",  # left to itself OpenVINO takes bf16 where it can
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(streams),
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "ENABLE_CPU_PINNING": "NO",  # as in `openvino`: processes would share the first cores
    }
    if keep and can_keep_optimized_models():
        config["CACHE_DIR"] = str(optimized_model_folder())
    return {"load_config": json.dumps({"CPU": config})}
