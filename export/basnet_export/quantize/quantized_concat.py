"""Maps that convolutions read are joined and pooled as bytes, and a map that several of them read becomes bytes once.

What is joined or pooled in floats is four times as large, and is read and written once more to become bytes. With one
step for each channel, bytes of joined maps are joined bytes and bytes of maxima are maxima of bytes: not a value
changes. Where a layer in FP32 reads such a map, it is joined or pooled in floats as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Float32

if TYPE_CHECKING:
    import onnx

__all__ = ["join_as_bytes"]

_EQUAL = 1e-5  # of a step: it is computed by way of different tensors' ranges


def join_as_bytes(graph: onnx.GraphProto) -> None:
    """Quantize what is joined or pooled, instead of what comes of it; nodes are left in any order.

    Args:
        graph: With a step for each channel of what is quantized, one byte for zero, and one step leading back.
    """
    _Rewriting(graph).run()


class _Rewriting:
    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import numpy_helper

        self.graph = graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output}
        # Of a tensor: steps by channel, the byte for zero, and what has them
        self.bytes: dict[str, list[tuple[Float32, int, str]]] = {}
        self.made: dict[tuple[str, float, int, bytes], str] = {}

    def run(self) -> None:
        quantizers = [node for node in self.graph.node if node.op_type == "QuantizeLinear" and self._by_channel(node)]
        moved = [node for node in quantizers if self._parts(node.input[0])]
        for node in quantizers:
            if not self._parts(node.input[0]):
                known = self.constants[node.input[1]], self._zero(node), node.output[0]
                self.bytes.setdefault(node.input[0], []).append(known)
        for node in moved:
            steps_C = self.constants[node.input[1]]
            for dequantizer in self._readers(node.output[0]):
                back = self.constants[dequantizer.input[1]]
                joined = self._in_bytes(node.input[0], steps_C, back, self._zero(node))
                for reader in self._readers(dequantizer.output[0]):
                    reader.input[:] = [joined if name == dequantizer.output[0] else name for name in reader.input]
        self._prune()

    def _by_channel(self, node: onnx.NodeProto) -> bool:
        return bool(self.constants[node.input[1]].ndim == 1)

    def _zero(self, node: onnx.NodeProto) -> int:
        return int(self.constants[node.input[2]].flat[0])

    def _readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if name in node.input]

    def _parts(self, name: str) -> list[str]:
        maker = self.makers.get(name)
        return list(maker.input) if maker is not None and maker.op_type in ("Concat", "MaxPool") else []

    def _channels(self, name: str) -> int:
        maker = self.makers[name]
        if maker.op_type == "Concat":
            return sum(self._channels(part) for part in maker.input)
        if maker.op_type != "Conv":
            return self._channels(maker.input[0])
        weight = maker.input[1]
        stored = weight if weight in self.constants else self.makers[weight].input[0]
        return len(self.constants[stored])

    def _in_bytes(self, name: str, steps_C: Float32, back: NDArray[np.float32], zero: int) -> str:
        """What equals `name` with its channels in these steps, led back by the one step `back`."""
        key = (name, float(back), zero, steps_C.tobytes())
        if key not in self.made:
            parts, inputs, start = self._parts(name), [], 0
            for part in parts:
                stop = start + self._channels(part)
                inputs.append(self._in_bytes(part, steps_C[start:stop], back, zero))
                start = stop
            if parts:
                self.made[key] = self._copied(self.makers[name], inputs)
            else:
                self.made[key] = self._led_back(self._quantized(name, steps_C, zero), back, zero)
        return self.made[key]

    def _copied(self, maker: onnx.NodeProto, inputs: list[str]) -> str:
        name = f"{maker.name}.bytes{len(self.made)}"
        return self._added(maker.op_type, inputs, name, maker.attribute)

    def _quantized(self, name: str, steps_C: Float32, zero: int) -> str:
        from onnx import helper

        known = self.bytes.setdefault(name, [])
        for other_C, other_zero, output in known:
            if zero == other_zero and np.allclose(other_C, steps_C, rtol=_EQUAL, atol=0):
                return output
        label = f"{name}.bytes{len(known)}"
        steps, zeros = f"{label}.steps", f"{label}.zeros"
        self._constant(steps, steps_C)
        self._constant(zeros, np.full(len(steps_C), zero, np.uint8))
        made = self._added("QuantizeLinear", [name, steps, zeros], label, [helper.make_attribute("axis", 1)])
        known.append((steps_C, zero, made))
        return made

    def _led_back(self, name: str, back: NDArray[np.float32], zero: int) -> str:
        label = f"{name}.back{len(self.made)}"
        step, zeros = f"{label}.step", f"{label}.zero"
        self._constant(step, back)
        self._constant(zeros, np.array(zero, np.uint8))
        return self._added("DequantizeLinear", [name, step, zeros], label)

    def _constant(self, name: str, value: NDArray[Any]) -> None:
        from onnx import numpy_helper

        self.constants[name] = value
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def _added(self, kind: str, inputs: list[str], name: str, attributes: Iterable[onnx.AttributeProto] = ()) -> str:
        from onnx import helper

        node = helper.make_node(kind, inputs, [name], name=name)
        node.attribute.extend(attributes)
        self.graph.node.append(node)
        self.makers[name] = node
        return name

    def _prune(self) -> None:
        """Remove what nothing reads any more."""
        wanted = {value.name for value in self.graph.output}
        while True:
            read = wanted.union(*(node.input for node in self.graph.node))
            dead = [node for node in self.graph.node if read.isdisjoint(node.output)]
            if not dead:
                return
            for node in dead:
                self.graph.node.remove(node)
