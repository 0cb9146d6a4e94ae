"""Quantize before concatenation and pooling, and each map once.

What is joined or pooled in floats is four times as large, and is read and written once more to become bytes. With one
step for each channel, bytes of joined maps are joined bytes and bytes of maxima are maxima of bytes: not a value
changes. Where a layer in FP32 reads such a map, it is joined or pooled in floats as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["constant", "quantize_before_concat"]

_EQUAL = 1e-5  # of a step: it is computed by way of different tensors' ranges
_MOVED = ("Concat", "MaxPool")


def quantize_before_concat(graph: ir.Graph) -> None:
    """Quantize before concatenation; leave unused nodes, nodes in any order.

    Args:
        graph: With a step for each channel of what is quantized, one byte for zero, and one step leading back.
    """
    _Rewriting(graph).run()


def constant(graph: ir.Graph, name: str, value: Any) -> ir.Value:
    """Add an initializer."""
    import onnx_ir as ir

    tensor = ir.tensor(np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value), name=name)
    made = ir.val(name, const_value=tensor)
    graph.register_initializer(made)
    return made


class _Rewriting:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        # Of a tensor: steps by channel, the byte for zero, and what has them
        self.bytes: dict[ir.Value, list[tuple[Float32, int, ir.Value]]] = {}
        self.made: dict[tuple[ir.Value, float, int, bytes], ir.Value] = {}

    def run(self) -> None:
        quantizers = [node for node in self.graph if node.op_type == "QuantizeLinear" and _array(node, 1).ndim == 1]
        moved = [node for node in quantizers if _parts(_read(node))]
        for node in quantizers:
            if node not in moved:
                known = _array(node, 1), int(_array(node, 2).flat[0]), node.outputs[0]
                self.bytes.setdefault(_read(node), []).append(known)
        for node in moved:
            for dequantizer in node.outputs[0].consumers():
                back, zero = float(_array(dequantizer, 1)), int(_array(node, 2).flat[0])
                joined = self._in_bytes(_read(node), _array(node, 1), back, zero)
                dequantizer.outputs[0].replace_all_uses_with(joined)

    def _in_bytes(self, value: ir.Value, steps_C: Float32, back: float, zero: int) -> ir.Value:
        """`value` quantized in these steps and dequantized by the one step `back`."""
        key = (value, back, zero, steps_C.tobytes())
        if key not in self.made:
            inputs, start = [], 0
            for part in _parts(value):
                stop = start + _channels(part)
                inputs.append(self._in_bytes(part, steps_C[start:stop], back, zero))
                start = stop
            maker = value.producer()
            if inputs and maker is not None:
                name = f"{maker.name}.bytes{len(self.made)}"
                self.made[key] = self._added(maker.op_type, inputs, name, maker.attributes)
            else:
                quantized = self._quantized(value, steps_C, zero)
                name = f"{quantized.name}.back{len(self.made)}"
                step = constant(self.graph, f"{name}.step", np.float32(back))
                zeros = constant(self.graph, f"{name}.zero", np.uint8(zero))
                self.made[key] = self._added("DequantizeLinear", [quantized, step, zeros], name)
        return self.made[key]

    def _quantized(self, value: ir.Value, steps_C: Float32, zero: int) -> ir.Value:
        known = self.bytes.setdefault(value, [])
        for other_C, other_zero, output in known:
            if zero == other_zero and np.allclose(other_C, steps_C, rtol=_EQUAL, atol=0):
                return output
        name = f"{value.name}.bytes{len(known)}"
        steps = constant(self.graph, f"{name}.steps", steps_C)
        zeros = constant(self.graph, f"{name}.zeros", np.full(len(steps_C), zero, np.uint8))
        made = self._added("QuantizeLinear", [value, steps, zeros], name, {"axis": 1})
        known.append((steps_C, zero, made))
        return made

    def _added(self, kind: str, inputs: list[ir.Value], name: str, attributes: Any = None) -> ir.Value:
        import onnx_ir as ir

        node = ir.node(kind, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
        self.graph.append(node)
        return node.outputs[0]


def _read(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None  # noqa: S101 - every node here has an input
    return value


def _array(node: ir.Node, index: int) -> Any:
    """A constant input."""
    value = node.inputs[index]
    assert value is not None  # noqa: S101 - the quantizer wrote it
    assert value.const_value is not None  # noqa: S101
    return value.const_value.numpy()


def _parts(value: ir.Value) -> list[ir.Value]:
    maker = value.producer()
    return [part for part in maker.inputs if part] if maker is not None and maker.op_type in _MOVED else []


def _channels(value: ir.Value) -> int:
    """How many a map has: as many as the convolution behind it makes."""
    maker = value.producer()
    assert maker is not None  # noqa: S101 - maps of the picture's channels stay FP32
    if maker.op_type == "Concat":
        return sum(_channels(part) for part in _parts(value))
    if maker.op_type != "Conv":
        return _channels(_read(maker))
    weight = maker.inputs[1]
    stored = weight.producer() if weight is not None else None
    return len(_array(stored, 0) if stored is not None else _array(maker, 1))
