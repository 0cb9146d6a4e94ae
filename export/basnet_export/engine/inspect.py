"""What the convolutions of a finished engine compute in, as far as the library's own inspector tells.

Its report is JSON; layers name the ONNX nodes that were fused into them. TensorRT 10 and 11 spell types differently,
and neither tells them of every layer: what is not told is not guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
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
    """The inspector's report of a plan, which is loaded for it; empty where that does not go. Needs a GPU."""
    library.messages.clear()
    runtime = library.trt.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(library.trt.LayerInformationFormat.JSON))


def inspected_precisions(report: str, convolutions: Iterable[Convolution]) -> dict[str, Precision]:
    """What each convolution computes in, by name; those of which the report does not tell are left out."""
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
    """That of the weights, else that of the inputs where they agree."""
    found = set(_types(layer))
    return found.pop() if len(found) == 1 else None


def _types(layer: Mapping[str, Any]) -> Iterator[Precision | None]:
    weights = layer.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Type"):
        yield _named(str(weights["Type"]))
        return
    for tensor in layer.get("Inputs") or ():
        if isinstance(tensor, Mapping):
            yield _named(str(tensor.get("DataType") or tensor.get("Format/Datatype") or ""))


def _named(text: str) -> Precision | None:
    """From `Half`, or a format that begins with it.

    >>> _named("Half"), _named("Int8(64,1:32)"), _named("N/A due to dynamic shapes")
    ('fp16', 'int8', None)
    """
    return _TYPES.get(re.split(r"[^A-Za-z0-9]", text.strip().lower(), maxsplit=1)[0])
