"""Convert an INT8 graph to FP8 (e4m3) with the same ranges and FP32 layers.

    graph = fp8_from_int8(int8_from_onnx(fp32_graph, ranges, target="tensorrt", keep_fp32=kept), fp32_graph)

FP8 keeps a share of each value instead of a step of the range, so that small values lose less and outliers cost
nothing; its scale lays the largest value onto 448, the largest number that e4m3 has. Weights are rounded from FP32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from basnet_torch.errors import ExportError

if TYPE_CHECKING:
    import onnx

__all__ = ["fp8_from_int8"]

_LARGEST = 448.0
_LARGEST_INT8 = 127.0
_OPSET = 19  # the first whose QuantizeLinear knows FP8


def fp8_from_int8(quantized: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a symmetric INT8 graph to FP8.

    Args:
        quantized: With QuantizeLinear and DequantizeLinear at the convolutions, weights kept as INT8.
        original: The FP32 graph that it was made of, for the weights themselves.

    Raises:
        ExportError: The graph is quantized otherwise.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    scales: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value, scale, zero = node.input[0], node.input[1], tensors[node.input[2]]
        if zero.data_type not in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN):
            raise ExportError(f"{node.name}: has an asymmetric range, and FP8 has no zero point")
        zero.CopyFrom(helper.make_tensor(zero.name, TensorProto.FLOAT8E4M3FN, zero.dims, [0] * (zero.dims or [1])[0]))
        if value in tensors:
            source = value.removesuffix("_quantized")  # the quantizer's ending
            if source not in weights:
                raise ExportError(f"{value}: its FP32 weights are not in the graph it was made of")
            step, rounded = _rounded(numpy_helper.to_array(weights[source]))
            tensors[value].CopyFrom(numpy_helper.from_array(rounded, value))
            tensors[scale].CopyFrom(numpy_helper.from_array(step, scale))
        elif scale not in scales:
            step = numpy_helper.to_array(tensors[scale]) * np.float32(_LARGEST_INT8 / _LARGEST)
            tensors[scale].CopyFrom(numpy_helper.from_array(step.astype(np.float32), scale))
        scales.add(scale)
    for version in model.opset_import:
        if not version.domain:
            version.version = max(version.version, _OPSET)
    model.ir_version = max(model.ir_version, 9)
    return model


def _rounded(kernel_OIHW: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
    """Return a scale per output channel and the weights in e4m3."""
    import ml_dtypes

    largest = np.abs(kernel_OIHW).reshape(len(kernel_OIHW), -1).max(axis=1)
    step = np.maximum(largest, np.finfo(np.float32).tiny * _LARGEST).astype(np.float32) / np.float32(_LARGEST)
    return step, (kernel_OIHW / step[:, None, None, None]).astype(ml_dtypes.float8_e4m3fn)
