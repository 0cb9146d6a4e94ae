"""16-bit arithmetic on any CPU: FP32 values rounded to their own type.

    with RoundedModel(rounded_graph(onnx.load("fp16.onnx")), manifest.preprocess, manifest.postprocess) as model:
        report = model.judged(reference, pictures, tolerance_for("fp16"))

CPU runtimes keep FP32 values between the layers of an FP16 file, so that FP16's limits show nowhere. Here they show. A
value beyond 65,504 is an overflow, and so is a sum whose terms together are larger than that: a GPU may sum in FP16, in
any order. Weights below the smallest normal FP16 number count as zero, which they are where hardware flushes them.
Bodies of If, Loop and Scan are not computed so, and a graph whose bodies hold 16-bit values is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from basnet_export.checks import Proof
from basnet_export.quantize.quantized_concat import constant
from basnet_export.samples import load_pictures
from basnet_runtime.backends.onnxruntime import OnnxRuntimeBackend, session_of
from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Manifest
from basnet_runtime.model import SaliencyModel
from basnet_runtime.parity import MaskModel, ParityReport, Picture, Tolerance, compare, tolerance_for
from basnet_torch.arrays import Float32
from basnet_torch.errors import BackendUnavailable, ExportError, ParityError
from basnet_torch.spec import Postprocess, Preprocess

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["RoundedModel", "check_arithmetic", "measure_rounded", "rounded_candidate", "rounded_graph"]

_LARGEST = 65_504.0
_SMALLEST_NORMAL = 2.0**-14
_PEAK = "peak/"
_KERNELS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "CumSum", "Sum", "Mean")
_POOLED = ("GlobalAveragePool", "GlobalLpPool", "InstanceNormalization", "GroupNormalization")
_FLATTENED = ("LayerNormalization", "RMSNormalization")
_SUMS = ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceLogSum", "GlobalAveragePool")
_SQUARES = (
    *("ReduceL2", "ReduceSumSquare", "LpNormalization", "MeanVarianceNormalization"),
    *("InstanceNormalization", "GroupNormalization", *_FLATTENED),
)
# These give values that they read, so that nothing is to be rounded where those are.
_SELECTIONS = ("MaxPool", "Concat", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity")
_RECTIFIERS = ("Relu", "Clip")
_NEVER_LARGER = (*_SELECTIONS, *_RECTIFIERS, "Resize", "Sigmoid", "Tanh", "Softmax", "Cast", "Constant")


def rounded_graph(model: onnx.ModelProto, *, exact: bool = False) -> onnx.ModelProto:
    """Copy a file's graph; its 16-bit values are FP32 ones that are rounded.

    The peaks of what may overflow are outputs beside the mask, called `peak/` and the node's name.

    Args:
        model: Any graph; what is FP32 in it stays so.
        exact: Round nothing but the weights, for what the masks of such a file are compared with.

    Raises:
        ExportError: A body of If, Loop or Scan computes in 16 bits.
    """
    import onnx
    import onnx_ir as ir
    from onnx import inliner

    whole = inliner.inline_local_functions(model) if model.functions else model
    found = ir.from_proto(onnx.shape_inference.infer_shapes(whole))
    graph = found.graph
    for node in graph:  # shape inference knows no type of GroupNormalization and what follows it
        dtype = node.inputs[0].dtype if node.inputs and node.inputs[0] else None
        if dtype is not None and _is_half(dtype):
            for value in node.outputs:
                value.dtype = value.dtype or dtype
    _refuse_bodies(graph, _is_half)
    types = {value: value.dtype for value in _values(graph) if _is_half(value.dtype)}
    for value in types:
        if value.const_value is not None:
            value.const_value = ir.tensor(_widened(value.const_value, exact=exact), name=value.name)
        value.dtype = ir.DataType.FLOAT
    for node in graph:
        for key in ("to", "dtype"):  # of Cast, of EyeLike
            given = node.attributes.get(key)
            if given is not None and given.type == ir.AttributeType.INT and _is_half(ir.DataType(given.as_int())):
                node.attributes[key] = ir.AttrInt64(key, ir.DataType.FLOAT)
        tensor = node.attributes.get("value")  # of Constant, of ConstantOfShape
        if tensor is not None and tensor.type == ir.AttributeType.TENSOR and _is_half(tensor.as_tensor().dtype):
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_widened(tensor.as_tensor(), exact=exact)))
    return _rounded(found, {} if exact else types)


def rounded_candidate(
    model: onnx.ModelProto,
    precision: Precision,
    keep_fp32: Collection[str],
    kernels: Callable[[str, Float32], NDArray[Any]],
) -> onnx.ModelProto:
    """Copy an FP32 `tensor` graph as `rounded_graph` would copy its 16-bit export.

    Args:
        model: The graph, whose nodes are named after the network.
        precision: `fp16` or `bf16`.
        keep_fp32: Parts of the network that stay FP32.
        kernels: Rounds a convolution's weights, given their name.

    Raises:
        ExportError: A body of If, Loop or Scan computes in floats.
    """
    import onnx_ir as ir

    found = ir.from_proto(model)
    graph = found.graph
    _refuse_bodies(graph, lambda dtype: dtype is not None and dtype.is_floating_point())
    dtype = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16

    exact = {node for node in graph if any(f"{node.name}.".startswith(f"{name}.") for name in keep_fp32)}
    types = {graph.inputs[0]: dtype}
    for node in graph:
        value = node.outputs[0]
        if value.dtype not in (ir.DataType.FLOAT, None) or value in graph.outputs:
            continue
        if node not in exact or not exact.issuperset(value.consumers()):
            types[value] = dtype
        for weight in node.inputs if node not in exact else ():
            if weight is not None and weight.const_value is not None and weight.dtype == ir.DataType.FLOAT:
                given = weight.const_value.numpy()
                with np.errstate(over="ignore"):  # a bias beyond the type becomes infinite, as in the export
                    rounded = kernels(str(weight.name), given) if given.ndim == 4 else given.astype(dtype.numpy())
                weight.const_value = ir.tensor(
                    _widened(ir.tensor(rounded.astype(dtype.numpy())), exact=False), name=weight.name
                )
    return _rounded(found, types, exact)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _is_half(dtype: ir.DataType | None) -> bool:
    return dtype is not None and dtype.name in ("FLOAT16", "BFLOAT16")


def _refuse_bodies(graph: ir.Graph, is_rounded: Callable[[ir.DataType | None], bool]) -> None:
    """Refuse a graph in whose bodies something would have to be rounded.

    What shape inference knows no type of counts as such, but for what is left out (an empty input).
    """
    import onnx_ir as ir

    for node in graph:
        bodies = [a for a in node.attributes.values() if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)]
        for attribute in bodies:
            for body in [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs():
                inside = [*_values(body), *(v for each in body.all_nodes() for v in (*each.inputs, *each.outputs) if v)]
                if any(value.dtype is None or is_rounded(value.dtype) for value in inside):
                    raise ExportError(
                        f"{node.name or node.op_type} ({node.op_type}): what its body computes in 16 bits cannot be "
                        "checked, so nothing is proven. Export the network without it, or continue without validation: "
                        "--no-check"
                    )


def _widened(tensor: ir.TensorProtocol, *, exact: bool) -> Float32:
    wide = tensor.numpy().astype(np.float32)
    if tensor.dtype.name == "FLOAT16" and not exact:
        wide[np.abs(wide) < _SMALLEST_NORMAL] = 0
    return wide


def _rounded(model: ir.Model, types: dict[ir.Value, Any], exact: Collection[ir.Node] = ()) -> onnx.ModelProto:
    """Insert the roundings and the peaks; `exact` nodes sum in FP32 and read each other and the input as they are."""
    import onnx_ir as ir
    from onnx_ir.passes import common as passes

    graph = model.graph
    for value in graph.inputs:
        if value in types:
            _round(graph, value, types[value], exact)
    for node in tuple(graph):
        value = node.outputs[0]
        dtype = types.get(value)
        if dtype is None:
            continue
        if dtype == ir.DataType.FLOAT16 and node.op_type not in _NEVER_LARGER:
            _watch(graph, node, summed=node not in exact)
        rounded_later = {user.op_type for user in value.consumers()} <= set(_RECTIFIERS) and len(value.uses()) > 0
        readers = exact if node in exact else ()
        selects = node.op_type in _SELECTIONS and node not in exact
        if not selects and not (rounded_later and value not in graph.outputs):
            for output in node.outputs:
                _round(graph, output, dtype, readers)
    passes.TopologicalSortPass()(model)
    made: onnx.ModelProto = ir.to_proto(model)
    made.graph.ClearField("value_info")
    return made


def _added(graph: ir.Graph, kind: str, *inputs: ir.Value | None, name: str, **attributes: Any) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(kind, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
    graph.append(node)
    return node.outputs[0]


def _round(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, exact: Collection[ir.Node] = ()) -> None:
    """Round a value, but for its readers that are `exact`."""
    import onnx_ir as ir

    uses = [use for use in value.uses() if use.node not in exact]
    short = _added(graph, "Cast", value, name=f"{value.name}/short", to=int(dtype))
    wide = _added(graph, "Cast", short, name=f"{value.name}/rounded", to=int(ir.DataType.FLOAT))
    for user, index in uses:
        user.replace_input_with(index, wide)
    for index, output in enumerate(graph.outputs):
        if output is value:
            name, value.name = value.name, f"{value.name}/exact"
            wide.name, wide.type, wide.shape = name, value.type, value.shape
            graph.outputs[index] = wide


def _watch(graph: ir.Graph, node: ir.Node, *, summed: bool) -> None:
    """Output the largest magnitude that a node's result, or if `summed` a sum on the way to it, may have."""
    import onnx_ir as ir

    layer = node.name or str(node.outputs[0].name)
    name, kind, read = f"{layer}/bound", node.op_type, node.inputs[0]
    if not summed:
        bound = _added(graph, "Abs", node.outputs[0], name=name)
    elif kind in _KERNELS:
        inputs = [value and _magnitude(graph, value) for value in node.inputs]
        bound = _added(graph, "Sum" if kind == "Mean" else kind, *inputs, name=name, **node.attributes)
    elif kind == "AveragePool" and read is not None:
        bound = _summed_windows(graph, node, _magnitude(graph, read), name)
    elif kind == "LpPool" and read is not None:
        bound = _summed_windows(graph, node, _powers(graph, node, read, name), name)
    elif kind == "LRN" and read is not None:
        bound = _summed_channels(graph, node, _added(graph, "Mul", read, read, name=f"{name}/terms"), name)
    elif kind == "GlobalLpPool" and read is not None:
        bound = _summed(graph, node, _powers(graph, node, read, name), name)
    elif kind in (*_SUMS, *_SQUARES) and read is not None:
        square = kind in _SQUARES
        terms = _added(graph, "Mul", read, read, name=f"{name}/terms") if square else _magnitude(graph, read)
        bound = _summed(graph, node, terms, name)
    else:
        bound = _added(graph, "Abs", node.outputs[0], name=name)
    peak = _added(graph, "ReduceMax", bound, name=f"{_PEAK}{layer}", keepdims=0)
    peak.type, peak.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    graph.outputs.append(peak)


def _powers(graph: ir.Graph, node: ir.Node, read: ir.Value, name: str) -> ir.Value:
    """Raise magnitudes to the power that a layer sums."""
    power = node.attributes["p"].as_int() if "p" in node.attributes else 2
    exponent = constant(graph, f"{name}/p", np.float32(power))
    return _added(graph, "Pow", _magnitude(graph, read), exponent, name=f"{name}/terms")


def _summed_windows(graph: ir.Graph, node: ir.Node, terms: ir.Value, name: str) -> ir.Value:
    """Sum the terms over the windows of a pooling layer."""
    import onnx_ir as ir

    taken = {key: value for key, value in node.attributes.items() if key != "p"}
    area = float(np.prod(taken["kernel_shape"].as_ints()))
    # Average pooling has dilations from opset 19 on; before, a window's largest term stands for all of them
    if "dilations" in taken and graph.opset_imports[""] < 19:
        pooled = _added(graph, "MaxPool", terms, name=f"{name}/largest", **taken)
    else:
        taken["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        pooled = _added(graph, "AveragePool", terms, name=f"{name}/mean", **taken)
    return _added(graph, "Mul", pooled, constant(graph, f"{name}/area", np.float32(area)), name=name)


def _summed_channels(graph: ir.Graph, node: ir.Node, terms: ir.Value, name: str) -> ir.Value:
    """Sum the terms N,C,H,W over the channels beside each that a local response normalization takes."""
    size = node.attributes["size"].as_int()
    before, after = (size - 1) // 2, size // 2
    if graph.opset_imports[""] < 13:
        planes = _added(graph, "Unsqueeze", terms, name=f"{name}/planes", axes=[1])
    else:
        axes = constant(graph, f"{name}/axes", np.array([1], np.int64))
        planes = _added(graph, "Unsqueeze", terms, axes, name=f"{name}/planes")
    mean = _added(
        *(graph, "AveragePool", planes),
        name=f"{name}/mean",
        kernel_shape=[size, 1, 1],
        pads=[before, 0, 0, after, 0, 0],
        count_include_pad=1,
    )
    return _added(graph, "Mul", mean, constant(graph, f"{name}/size", np.float32(size)), name=name)


def _summed(graph: ir.Graph, node: ir.Node, terms: ir.Value, name: str) -> ir.Value:
    """Sum the terms over the axes that a layer sums over."""
    given, kind = node.attributes, node.op_type
    axes: Any = None
    options: dict[str, Any] = {}
    if kind in _FLATTENED:
        axis = given["axis"].as_int() if "axis" in given else -1
        terms, axes = _added(graph, "Flatten", terms, name=f"{name}/flat", axis=axis), [1]
    elif kind in _POOLED:
        groups = given["num_groups"].as_int() if "num_groups" in given else 0
        shape = constant(graph, f"{name}/shape", np.array([0, groups, -1], np.int64))
        terms, axes = _added(graph, "Reshape", terms, shape, name=f"{name}/flat"), [2]
    elif kind == "LpNormalization":
        axes = [given["axis"].as_int() if "axis" in given else -1]
    else:
        options = {key: value for key, value in given.items() if key != "axes"}
        axes = [0, 2, 3] if kind == "MeanVarianceNormalization" else node.inputs[1] if len(node.inputs) > 1 else None
        axes = list(given["axes"].as_ints()) if "axes" in given else axes
    if graph.opset_imports[""] < 13:  # the first in which ReduceSum, alone of its kind, reads its axes
        return _added(graph, "ReduceSum", terms, name=name, **options, **({"axes": axes} if axes else {}))
    if isinstance(axes, list):
        axes = constant(graph, f"{name}/axes", np.array(axes, np.int64))
    return _added(graph, "ReduceSum", terms, *([axes] if axes is not None else []), name=name, **options)


def _magnitude(graph: ir.Graph, value: ir.Value) -> ir.Value:
    import onnx_ir as ir

    name = f"{value.name}/abs"
    if value.dtype in (ir.DataType.INT32, ir.DataType.INT64):  # the axis of CumSum
        return value
    if name in graph.initializers:
        return graph.initializers[name]
    if value.const_value is not None:
        return constant(graph, name, np.abs(value.const_value.numpy()))
    known = next((user for user in value.consumers() if user.name == name), None)
    return known.outputs[0] if known else _added(graph, "Abs", value, name=name)


class _RoundedBackend(OnnxRuntimeBackend):
    """Runs a rounded graph and keeps what overflowed in each batch."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        super().__init__(session_of(graph.SerializeToString()), "each value rounded to its own type, by ONNX Runtime")
        self.overflows: list[dict[str, float]] = []

    def infer(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Masks, as far as they are numbers."""
        names = [output.name for output in self._session.get_outputs()]
        found = dict(zip(names, self._session.run(None, {self.input.name: batch}), strict=True))
        mask = found.pop(self.output.name)
        self.overflows.append(
            {name.removeprefix(_PEAK): float(peak) for name, peak in found.items() if not peak <= _LARGEST}
        )
        return cast(NDArray[Any], mask)


class RoundedModel(SaliencyModel):
    """A rounded graph that gives masks, and tells what overflowed."""

    backend: _RoundedBackend

    def __init__(self, graph: onnx.ModelProto, preprocess: Preprocess, postprocess: Postprocess) -> None:
        super().__init__(_RoundedBackend(graph), preprocess, postprocess, "rounded")

    @property
    def overflow(self) -> str:
        """Describe the layer with the largest overflow and its value; empty without."""
        worst = max((item for found in self.backend.overflows for item in found.items()), key=_peak_of, default=None)
        return f"{worst[0]} reaches {worst[1]:.3g}, FP16 ends at {_LARGEST:,.0f}" if worst else ""

    def judged(self, reference: MaskModel, pictures: Iterable[Picture], tolerance: Tolerance) -> ParityReport:
        """The contract; a picture on which something overflows counts as not finite."""
        self.backend.overflows.clear()
        report = compare(reference, self, pictures, tolerance)
        rows = zip(report.differences, self.backend.overflows, strict=True)
        return replace(report, differences=tuple(replace(row, finite=row.finite and not over) for row, over in rows))


def _peak_of(item: tuple[str, float]) -> float:
    return np.inf if np.isnan(item[1]) else item[1]


def measure_rounded(
    graph: onnx.ModelProto, manifest: Manifest, reference: MaskModel, pictures: Sequence[Picture]
) -> Proof:
    """Compare a file whose every value is rounded to its own type with the reference.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        ExportError: See `rounded_graph`.
    """
    with RoundedModel(rounded_graph(graph), manifest.preprocess, manifest.postprocess) as model:
        report = model.judged(reference, pictures, tolerance_for(manifest.precision))
        what = f"{manifest.checkpoint}, each value rounded to {manifest.precision}"
        return Proof(
            report=report,
            ran=model.backend.description,
            what=f"{what} ({model.overflow})" if model.overflow else what,
        )


def check_arithmetic(graph: bytes, manifest: Manifest) -> None:
    """Compare an FP16 or bf16 file in its own arithmetic with itself in FP32.

    On the bundled photographs.

    Raises:
        BackendUnavailable: onnx or ONNX Runtime is not installed.
        ExportError: See `rounded_graph`.
        ParityError: They differ by more than the contract allows, or something overflows.
    """
    if find_spec("onnx") is None:
        raise BackendUnavailable(
            f"{manifest.precision} arithmetic: checking it needs onnx; pip install 'basnet-deploy[export,cpu]', "
            "or build without validation: --no-check"
        )
    import onnx

    model = onnx.ModelProto.FromString(graph)
    with RoundedModel(rounded_graph(model, exact=True), manifest.preprocess, manifest.postprocess) as exact:
        proof = measure_rounded(model, manifest, exact, load_pictures())
    report = replace(proof.report, informative=proof.report.pictures)  # flat masks are another fault than this
    if not report:
        raise ParityError(
            f"{proof.what}: differs from FP32: {'; '.join(report.failures)}. Export the checkpoint again, which "
            "searches for layers that stay FP32, or build without validation: --no-check"
        )
