"""Free height and width of `tensor` graphs: any multiple of 32.

The graph then holds factors and no sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["free_size"]

# Operations that hold no size, whatever map they read: their constants are kernels, factors and values of channels.
_SIZELESS = (
    *("Conv", "MaxPool", "Concat", "Resize", "Add", "Sub", "Mul", "Div", "Cast", "GlobalAveragePool"),
    *("Relu", "LeakyRelu", "PRelu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "Erf"),
    *("QuantizeLinear", "DequantizeLinear"),
)


def free_size(graph: onnx.ModelProto, *, traced: bool = False) -> bool:
    """Name height and width as free axes, in place; say whether the graph allows it.

    An export with a fixed size is the same graph, in a third of the time that a symbolic one takes.

    Args:
        graph: A `tensor` graph.
        traced: Whether it was exported with symbolic sizes, and so holds none.
    """
    nodes = graph.graph.node
    maps = {t.name for t in graph.graph.initializer if len(t.dims) >= 3 and max(t.dims[-2:]) > 1}
    kernels = {node.input[1] for node in nodes if node.op_type == "Conv"}
    for node in reversed(nodes):  # what is dequantized, cast or multiplied to be one
        kernels |= set(node.input) if node.output[0] in kernels else set()
    for node in nodes if not traced else ():
        resized_to = node.op_type == "Resize" and len(node.input) > 3
        holds_map = maps & set(node.input) and not kernels & {*node.input, *node.output}
        if node.op_type not in _SIZELESS or resized_to or holds_map:
            return False
    ends = [tensor.type.tensor_type.shape.dim for tensor in (graph.graph.input[0], graph.graph.output[0])]
    size = [axis.dim_value for axis in ends[0][2:]]
    if traced:
        graph.graph.ClearField("value_info")  # its sizes are formulas in names that are the exporter's own
    # Maps of one size keep one name: ONNX Runtime fuses an Add only where it knows that shapes are equal.
    inner = [value.type.tensor_type.shape.dim for value in graph.graph.value_info]
    for axes in (*ends, *(axes for axes in inner if len(axes) == 4 and axes[0].dim_param)):
        axes[0].dim_param = "batch"
        for axis, name, whole in zip(axes[2:], ("height", "width"), size, strict=True):
            if axis.dim_value and whole % axis.dim_value:
                axis.Clear()
            elif axis.dim_value or traced:
                axis.dim_param = name if axis.dim_value == whole else f"{name}/{whole // axis.dim_value}"
    return True
