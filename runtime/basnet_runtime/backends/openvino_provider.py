"""OpenVINO as a provider of ONNX Runtime: a plug-in that ONNX Runtime loads, with a build of OpenVINO of its own.

devices = openvino_devices(onnxruntime)
options.add_provider_for_devices(devices, openvino_options(threads=2, streams=1, keep=True))

ONNX Runtime's own INT8 kernels want every value between layers in bytes; OpenVINO's do not, and use a processor's AMX.
"""

from __future__ import annotations

import json
import platform
import sys
import threading
from importlib.metadata import version
from types import ModuleType
from typing import Any

from basnet_runtime.backends.graph_cache import can_keep_graphs, graph_folder
from basnet_torch.errors import BackendUnavailable

__all__ = ["has_plugin_here", "openvino_devices", "openvino_options", "openvino_version"]

_PACKAGE = "onnxruntime-ep-openvino"
_loading = threading.Lock()


def openvino_devices(ort: ModuleType) -> list[Any]:
    """The processor as the plug-in's device; the plug-in is loaded when it is first asked for.

    Raises:
        BackendUnavailable: The plug-in is not installed or does not load, or does not support this ONNX Runtime or this
            processor.
    """
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError as error:
        raise BackendUnavailable(f"device openvino: {_why_no_plugin()}") from error
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendUnavailable(
            f"device openvino: needs ONNX Runtime 1.23, this is {ort.__version__}; pip install --upgrade onnxruntime"
        )
    with _loading:  # a library can be registered once
        devices = _found(ort, plugin) or _registered(ort, plugin)
    if not devices:
        raise BackendUnavailable("device openvino: OpenVINO does not run on this processor; use --device cpu")
    return devices


def _registered(ort: ModuleType, plugin: ModuleType) -> list[Any]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
    except (state.Fail, state.EPFail, state.InvalidArgument, state.RuntimeException, RuntimeError, OSError) as error:
        line = str(error).rsplit(" : ", maxsplit=1)[-1].strip().split("\n", maxsplit=1)[0][:160]
        raise BackendUnavailable(
            f"device openvino: ONNX Runtime cannot load its plug-in ({line}); pip install --force-reinstall {_PACKAGE}"
        ) from error
    return _found(ort, plugin)


def _found(ort: ModuleType, plugin: ModuleType) -> list[Any]:
    name = plugin.get_ep_name()
    return [d for d in ort.get_ep_devices() if d.ep_name == name and d.ep_metadata.get("ov_device") == "CPU"]


def _why_no_plugin() -> str:
    """Why the plug-in is not there, and what to do, for people."""
    if not has_plugin_here():
        return "there is no plug-in for ONNX Runtime on this platform; use --device cpu"
    return "its plug-in for ONNX Runtime is not installed; pip install 'basnet-deploy[openvino-ep]'"


def has_plugin_here() -> bool:
    """Whether there is a plug-in to install on this platform."""
    return platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin"


def openvino_version() -> str:
    """The plug-in's own version; that of OpenVINO in it is not told."""
    return version(_PACKAGE)


def openvino_options(*, threads: int, streams: int, keep: bool) -> dict[str, str]:
    """The provider's options.

    Args:
        threads: Processor threads of all streams together.
        streams: Batches that run beside each other.
        keep: Whether the compiled model is kept for the next start.
    """
    config = {
        "INFERENCE_PRECISION_HINT": "f32",  # left to itself OpenVINO takes bf16 where it can
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(streams),
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
    }
    if keep and can_keep_graphs():
        config["CACHE_DIR"] = str(graph_folder())
    return {"load_config": json.dumps({"CPU": config})}
