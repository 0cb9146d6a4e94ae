"""TensorRT and TensorRT for RTX behind one value.

The only module that imports `tensorrt` or `tensorrt_rtx`.

    library = open_tensorrt("auto")
    builder = library.trt.Builder(library.logger)

Both have one API as far as it is used here. They differ in where a plan is built and runs: TensorRT builds on the GPU
it is for; TensorRT for RTX builds anywhere and compiles its kernels where the plan runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

from basnet_runtime.kinds import FLAVOR_NAMES, Flavor
from basnet_runtime.machine.installed import has_nvidia_driver
from basnet_torch.errors import BackendUnavailable, UsageError

__all__ = ["Messages", "TensorRT", "open_tensorrt", "plan_version"]

_MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_EXTRAS: dict[Flavor, str] = {"tensorrt": "gpu", "rtx": "rtx"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRT:
    """One imported flavor.

    Attributes:
        flavor: Which.
        version: Of the library, such as `10.16.1.11`; a plan belongs to exactly one.
        trt: The module.
        logger: Of the whole process, because TensorRT keeps only the first.
        messages: What that logger was told.
    """

    flavor: Flavor
    version: str
    trt: Any
    logger: Any
    messages: Messages

    def __str__(self) -> str:
        return f"{FLAVOR_NAMES[self.flavor]} {self.version}"


class Messages:
    """Errors and warnings of the library since `clear`, oldest first."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def clear(self) -> None:
        """Forget what was told."""
        self.errors.clear()
        self.warnings.clear()

    def reason(self) -> str:
        """The last error in one line, for a message to people."""
        return " ".join(self.errors[-1].split())[:300] if self.errors else "the library gave no reason"


def plan_version(plan: bytes) -> str | None:
    """Return the version in the header of a TensorRT for RTX plan; None for others.

    Asked of the plan, because a process may have loaded another library than its bindings were installed with.

    >>> plan_version(b"vtrt" + bytes(21) + bytes((1, 7, 1, 116)))
    '1.7.1.116'
    """
    return ".".join(map(str, plan[25:29])) if plan.startswith(b"vtrt") and len(plan) > 28 else None


def open_tensorrt(flavor: Flavor | Literal["auto"] = "auto") -> TensorRT:
    """Open the flavor asked for; `auto` takes what is installed.

    With both it is TensorRT where there is an NVIDIA driver.

    Raises:
        BackendUnavailable: It is not installed, or cannot be loaded.
        UsageError: There is no such flavor.
    """
    if flavor == "auto":
        flavor = _chosen()
    if flavor not in get_args(Flavor):
        raise UsageError(f"flavor {flavor!r}: it must be auto, {', '.join(get_args(Flavor))}")
    return _imported(flavor)


def _chosen() -> Flavor:
    installed: list[Flavor] = [flavor for flavor, module in _MODULES.items() if find_spec(module)]
    if not installed:
        raise BackendUnavailable(
            "no TensorRT is installed; pip install 'basnet-deploy[gpu]' on a machine with an NVIDIA GPU, "
            "or 'basnet-deploy[rtx]' to build plans for RTX GPUs on any machine"
        )
    return installed[0] if len(installed) == 1 or has_nvidia_driver() else "rtx"


@cache
def _imported(flavor: Flavor) -> TensorRT:
    name = FLAVOR_NAMES[flavor]
    try:
        trt = import_module(_MODULES[flavor])
    except ImportError as error:
        why = "is not installed" if find_spec(_MODULES[flavor]) is None else f"cannot be loaded ({error})"
        raise BackendUnavailable(f"{name} {why}; pip install 'basnet-deploy[{_EXTRAS[flavor]}]'") from error
    messages = Messages()
    return TensorRT(
        flavor=flavor, version=str(trt.__version__), trt=trt, logger=_logger(trt, messages), messages=messages
    )


def _logger(trt: Any, messages: Messages) -> Any:
    """A logger that keeps instead of printing, so that a command can say one line."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                messages.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                messages.warnings.append(message)

    return Logger()
