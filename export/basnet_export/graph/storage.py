"""FP16 storage of weights in FP32 graphs: half the bytes, the same masks.

Only weights that are exact in FP16 qualify. Where batch norm was folded into them they become the checkpoint's own
weights and a factor per output channel, which runtimes multiply once, at load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from basnet_torch.arrays import Float32
from basnet_torch.errors import ExportError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

__all__ = ["exact_kernels", "store_as_fp16"]

_SMALL = 4096  # values; below this a cast costs more than it saves
_ROUNDING = 1e-6  # relative: folded in float64, multiplied in FP32 when the file is loaded


def store_as_fp16(graph: onnx.ModelProto, kernels: Mapping[str, Float32] | None = None) -> onnx.ModelProto:
    """Store large FP32 weights as FP16 with a cast and a factor, in place.

    Args:
        graph: Any graph; weights of convolutions that are neither exact in FP16 nor in `kernels` stay FP32.
        kernels: The checkpoint's own weights O,I,H,W by the name of the convolution, from `exact_kernels`.
    """
    from onnx import TensorProto, helper, numpy_helper

    readers = {node.input[1]: node.name for node in graph.graph.node if node.op_type == "Conv"}
    made: list[onnx.NodeProto] = []
    factors: list[onnx.TensorProto] = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        kernel = (kernels or {}).get(readers.get(name, ""), values)
        factor = _factor(values, kernel)
        if factor is None:
            continue
        tensor.CopyFrom(numpy_helper.from_array(kernel.astype(np.float16), f"{name}.fp16"))
        whole = name if np.all(factor == 1) else f"{name}.unfolded"
        made.append(helper.make_node("Cast", [f"{name}.fp16"], [whole], name=f"{name}.cast", to=TensorProto.FLOAT))
        if whole != name:
            factors.append(numpy_helper.from_array(factor, f"{name}.factor"))
            made.append(helper.make_node("Mul", [whole, factors[-1].name], [name], name=f"{name}.fold"))
    graph.graph.initializer.extend(factors)
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*made, *nodes])
    return graph


def _factor(values: Float32, kernel: Float32) -> Float32 | None:
    """Find the factor per output channel between kernel and values, if any."""
    with np.errstate(all="ignore"):  # what overflows is not close
        half = kernel.astype(np.float16).astype(np.float64).reshape(len(kernel), -1)
        flat = values.reshape(len(values), -1)
        over, under = ((half * one).sum(axis=1, keepdims=True) for one in (flat, half))
        factor: Float32 = np.divide(over, under, out=np.ones_like(under), where=under != 0).astype(np.float32)
        if not np.allclose(half * factor, flat, rtol=_ROUNDING, atol=0):
            return None
    return factor.reshape(-1, *[1] * (values.ndim - 1))


def exact_kernels(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Collect the weights of convolutions by module name.

    Raises:
        ExportError: One is not exact in FP16.
    """
    kernels = {name: value for name, value in state.items() if value.ndim == 4}
    for name, value in kernels.items():
        if not bool((value.half().float() == value).all()):
            raise ExportError(
                f"store fp16: {name} is not exact in FP16, so the file would be another model; "
                "run basnet-export checkpoint --store fp16 first and export that, or leave --store out"
            )
    return {name.removesuffix(".weight"): value.cpu().numpy() for name, value in kernels.items()}
