"""Telemetry of ONNX Runtime and OpenVINO, switched off before either is imported.

with without_openvino_telemetry():
    import openvino
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_openvino_telemetry"]

_SENDER = "openvino_telemetry"

# ONNX Runtime reads it while it is imported: its `disable_telemetry_events` comes when files and a thread are there.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextmanager
def without_openvino_telemetry() -> Iterator[None]:
    """Import OpenVINO without its telemetry package, which no variable silences.

    OpenVINO takes its own stand-in where that package cannot be imported. A program that has imported the package
    itself keeps it.
    """
    if _SENDER in sys.modules:
        yield
        return
    sys.modules[_SENDER] = None  # type: ignore[assignment]  # how Python marks a module that cannot be imported
    try:
        yield
    finally:
        sys.modules.pop(_SENDER, None)
