"""Weights kept as FP16 in an FP32 graph: half the file and the same masks, because only exact weights qualify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from basnet_torch.errors import ExportError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

__all__ = ["refuse_inexact", "store_as_fp16"]

_SMALL = 4096  # values; below this a cast costs more than it saves


def store_as_fp16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each large FP32 weight by an FP16 one and a cast, in place; runtimes undo the casts once, at load.

    Args:
        graph: An FP32 graph whose convolutions hold the checkpoint's own weights, which are exact in FP16.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*casts, *nodes])
    return graph


def refuse_inexact(state: Mapping[str, Tensor]) -> None:
    """Raise ExportError, naming a weight, unless every convolution's weights are exact in FP16."""
    for name, value in state.items():
        if value.ndim == 4 and not bool((value.half().float() == value).all()):
            raise ExportError(
                f"store fp16: {name} is not exact in FP16, so the file would be another model; "
                "run basnet-export checkpoint --store fp16 first and export that, or leave --store out"
            )
