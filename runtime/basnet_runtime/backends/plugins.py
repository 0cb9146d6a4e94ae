"""Plug-in providers of ONNX Runtime, registered once in a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from basnet_runtime.machine.installed import installed_version

__all__ = ["OLDEST", "NoDevices", "registered_devices"]

OLDEST = (1, 24)  # ONNX Runtime's major and minor version, as in pyproject.toml; the plug-ins ask for it too
_lock = threading.Lock()
_answers: dict[str, str] = {}  # of a plug-in's file: why it cannot be registered, or empty


@dataclass(frozen=True, kw_only=True, slots=True)
class NoDevices:
    """Why a plug-in offers none.

    Attributes:
        reason: For people.
        fix: The command or option that helps.
        is_fault: Whether something is broken, and not only absent.
    """

    reason: str
    fix: str
    is_fault: bool = False


def registered_devices(
    ort: ModuleType, plugin: ModuleType, package: str, fits: Callable[[Any], bool]
) -> list[Any] | NoDevices:
    """Return the devices of an imported plug-in, or why it is not loaded.

    An empty list where none of them fits.

    Args:
        ort: `onnxruntime`.
        plugin: The plug-in's module.
        package: What it is installed as.
        fits: Whether a device of the plug-in is one that is meant.
    """
    if _release(ort.__version__) < OLDEST or not hasattr(ort, "register_execution_provider_library"):
        runtime = "onnxruntime" if installed_version("onnxruntime") else "onnxruntime-gpu"
        return NoDevices(
            reason=f"needs ONNX Runtime {'.'.join(map(str, OLDEST))}, this is {ort.__version__}",
            fix=f"pip install --upgrade {runtime}",
            is_fault=True,
        )

    def found() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == plugin.get_ep_name() and fits(device)]

    path = plugin.get_library_path()
    with _lock:  # a library can be registered once, and a second attempt would hide why the first one failed
        if not found() and path not in _answers:
            _answers[path] = _why_not_registered(ort, plugin.get_ep_name(), path)
    if reason := _answers.get(path, ""):
        return NoDevices(
            reason=f"ONNX Runtime cannot load its plug-in ({reason})",
            fix=f"pip install --force-reinstall {package}",
            is_fault=True,
        )
    return found()


def _release(text: str) -> tuple[int, ...]:
    """Major and minor of a version.

    >>> _release("1.23.0.dev2")
    (1, 23)
    """
    return tuple(int(part) for part in text.split(".")[:2])


def _why_not_registered(ort: ModuleType, name: str, path: str) -> str:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        ort.register_execution_provider_library(name, path)
    except (state.Fail, state.EPFail, state.InvalidArgument, state.RuntimeException, RuntimeError, OSError) as error:
        line = str(error).rsplit(" : ", maxsplit=1)[-1].strip().split("\n", maxsplit=1)[0]
        line = (
            line.rsplit(" with error: ", maxsplit=1)[-1][:160] if len(line) > 160 else line
        )  # the cause, not the path
        # No other sign tells that the program around us has registered it: it offers nothing, and cannot be listed.
        return "" if "already registered" in line else line
    return ""
