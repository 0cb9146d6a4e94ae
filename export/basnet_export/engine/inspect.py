"""Read the precision of convolutions from TensorRT's engine inspector.

The report is JSON whose layers name the ONNX nodes fused into them. TensorRT 10 and 11 spell types differently and
leave out some layers; those stay unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from basnet_export.engine.network import Convolution
from basnet_runtime.backends.tensorrt.library import TensorRT
from basnet_runtime.kinds import Precision

__all__ = ["engine_report", "inspected_precisions"]

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPES: dict[str, Precision] = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
}


def engine_report(library: TensorRT, plan: bytes) -> str:
    """Load a plan on the GPU; return the inspector's JSON, empty on failure."""
    library.messages.clear()
    runtime = library.trt.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))


def inspected_precisions(report: str, convolutions: Iterable[Convolution]) -> dict[str, Precision]:
    """Map names of convolutions to the precisions that the report tells."""
    try:
        layers = json.loads(report)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    told: dict[str, Precision] = {}
    for layer in layers if isinstance(layers, list) else ():
        precision = _precision(layer) if isinstance(layer, Mapping) else None
        if precision:
            told |= dict.fromkeys(_NODE.findall(str(layer.get("Metadata", ""))), precision)
    return {each.name: told[each.name] for each in convolutions if each.name in told}


def _precision(layer: Mapping[str, Any]) -> Precision | None:
    """The precision of the weights, else of the inputs where they agree."""
    weights, inputs = layer.get("Weights"), layer.get("Inputs") or ()
    if isinstance(weights, Mapping) and weights.get("Type"):
        return _named(str(weights["Type"]))
    told = (each.get("DataType") or each.get("Format/Datatype") or "" for each in inputs if isinstance(each, Mapping))
    found = {_named(str(text)) for text in told}
    return found.pop() if len(found) == 1 else None


def _named(text: str) -> Precision | None:
    """Parse a type such as `Half`, or a format that begins with one.

    >>> _named("Half"), _named("Int8(64,1:32)"), _named("N/A due to dynamic shapes")
    ('fp16', 'int8', None)
    """
    return _TYPES.get(re.split(r"[^A-Za-z0-9]", text.strip().lower(), maxsplit=1)[0])
