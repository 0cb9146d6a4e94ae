"""Checks of a graph before it is kept: names, shapes and types, parity, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from basnet_runtime.manifest import Manifest
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import open_model
from basnet_runtime.parity import MEASURES, ParityReport, Picture
from basnet_torch.errors import ExportError, ParityError
from basnet_torch.spec import STRIDE

if TYPE_CHECKING:
    import onnx

    from basnet_export.reference import Reference

__all__ = ["BATCHES", "Proof", "check_batches", "check_graph", "measure_parity", "measure_sizes", "other_sizes"]

BATCHES = (1, 2, 7)
_DEQUANTIZE = "DequantizeLinear"
_BATCH_LIMIT = 1e-5
_PICTURES_OF_A_SIZE = 2
_CONVOLUTION_TYPES = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8", "fp8": "FLOAT8E4M3FN"}


def check_graph(graph: onnx.ModelProto, manifest: Manifest) -> None:
    """Check ONNX validity, input, output, unused values, batch norm and types.

    Raises:
        ExportError: Naming what is wrong.
    """
    import onnx

    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph is no valid ONNX: {str(error).strip().splitlines()[0]}") from error
    for wanted, found in ((manifest.input, graph.graph.input), (manifest.output, graph.graph.output)):
        if [tensor.name for tensor in found] != [wanted.name]:
            raise ExportError(f"the graph has {[tensor.name for tensor in found]} where {wanted.name} alone belongs")
        _check_axes(found[0], wanted.shape)
    _check_nothing_left_over(graph.graph)
    _check_types(graph.graph, manifest)


def _check_axes(tensor: onnx.ValueInfoProto, shape: tuple[int | None, ...]) -> None:
    axes = tensor.type.tensor_type.shape.dim
    lengths = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)
    if lengths != shape:
        raise ExportError(f"{tensor.name} has axes {lengths} where {shape} belong; None is dynamic")
    names = [axis.dim_param for axis in axes if not axis.HasField("dim_value")]
    if names != ["batch", "height", "width"][: len(names)]:
        raise ExportError(f"{tensor.name} has dynamic axes called {names}")


def _check_nothing_left_over(graph: onnx.GraphProto) -> None:
    """Every value is used, so side outputs are pruned."""
    used = {name for node in graph.node for name in node.input} | {tensor.name for tensor in graph.output}
    made = [name for node in graph.node for name in node.output if name]
    dangling = sorted({*made, *(tensor.name for tensor in graph.initializer)} - used)
    if dangling:
        raise ExportError(f"{len(dangling)} values are computed or stored and never used, such as {dangling[0]}")
    if any(node.op_type == "BatchNormalization" for node in graph.node):
        raise ExportError("batch norm is left in the graph; it must be folded")


def _check_types(graph: onnx.GraphProto, manifest: Manifest) -> None:
    """Check the type of every convolution's weights, FP32 parts excepted."""
    import onnx

    wanted = _CONVOLUTION_TYPES[manifest.precision]
    types = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    for kind in ("Cast", "Mul"):  # a weight stored as FP16, and one that batch norm is folded into at load
        types |= {node.output[0]: "FLOAT" for node in graph.node if node.op_type == kind and node.input[0] in types}
    types |= {n.output[0]: types[n.input[0]] for n in graph.node if n.op_type == _DEQUANTIZE and n.input[0] in types}
    parts = (*manifest.keep_fp32, *(manifest.quantization or {}).get("always_fp32", ()))
    other = []
    for node in graph.node:
        kept = any(node.name == part or node.name.startswith(f"{part}.") for part in parts)
        if node.op_type == "Conv" and types.get(node.input[1]) != ("FLOAT" if kept else wanted):
            other.append(node.name)
    if other:
        raise ExportError(f"{len(other)} convolutions do not compute in {manifest.precision}, such as {other[0]}")


def check_batches(path: Path, manifest: Manifest, pictures: Sequence[Picture]) -> None:
    """Compare masks of batches of 1, 2 and 7 with those of single pictures.

    Raises:
        ParityError: When a mask depends on the batch it was in.
    """
    # The same sums in another order, and one step where masks are bytes.
    limit = _BATCH_LIMIT + (1 / 255 if manifest.graph == "frame" else 0)
    with open_model(path) as model:
        prepared = _prepared(model, pictures)
        alone = np.concatenate([_unit(model.infer([one])) for one in prepared])
        for size in BATCHES:
            together = _unit(model.infer(prepared[:size]))
            largest = float(np.abs(together - alone[:size]).max())
            if not largest <= limit:
                raise ParityError(f"in a batch of {size} masks differ by {largest:.2g} from the same pictures alone")


def _prepared(model: SaliencyModel, pictures: Sequence[Picture]) -> list[Any]:
    """Prepare inputs of one shape for the largest batch; pictures repeat, rolled."""
    height, width = min(p.image_HWC.shape[:2] for p in pictures)
    crops = [p.image_HWC[:height, : min(width, *(q.image_HWC.shape[1] for q in pictures))] for p in pictures]
    crops = [crop for crop in crops if crop.shape == crops[0].shape]
    turns = (divmod(index, len(crops)) for index in range(max(BATCHES)))
    inputs = [np.roll(crops[which], turn * height // max(BATCHES), axis=0) for turn, which in turns]
    return [np.ascontiguousarray(model.prepare(image_HWC)) for image_HWC in inputs]


def _unit(raw: Any) -> Any:
    return raw.astype(np.float32) / 255 if raw.dtype == np.uint8 else raw


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """How a file compares with PyTorch FP32.

    Attributes:
        report: The contract's values.
        ran: The backend that ran the file.
        what: The file, in words.
    """

    report: ParityReport
    ran: str
    what: str

    def receipt(self) -> dict[str, Any]:
        """What the manifest keeps.

        Raises:
            ParityError: The contract fails, with every reason.
        """
        self.report.raise_if_failed(self.what)
        return {**self.report.to_dict(), "ran": self.ran}


def measure_parity(path: Path, manifest: Manifest, reference: Reference) -> Proof:
    """Compare a file with the reference, on the reference's device.

    Raises:
        BackendUnavailable: When nothing installed can run the file.
    """
    with open_model(path, device=reference.device) as candidate:
        report = reference.report(candidate, manifest.precision)
        ran = candidate.backend.description
    return Proof(report=report, ran=ran, what=f"{manifest.checkpoint} as {manifest.graph} graph")


def other_sizes(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return two more sizes: a larger one, and a smaller one of another shape.

    >>> other_sizes(256, 256)
    ((320, 256), (128, 288))
    """
    return (height + 2 * STRIDE, width), (max(STRIDE, height // 2 // STRIDE * STRIDE), width + STRIDE)


def measure_sizes(
    path: Path, manifest: Manifest, reference: Reference, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compare a file of free size with the reference at two other sizes.

    Returns what the receipt keeps.

    Flat masks are allowed there. A reduced precision that misses its contract is reported and recorded: weights, ranges
    and limits are those of the size it was validated at, which is what the runtime feeds.

    Raises:
        ParityError: An FP32 file misses the contract.
    """
    found = {}
    for height, width in other_sizes(*manifest.size):
        size = f"{height}x{width}"
        with open_model(path, device=reference.device, size=(height, width)) as candidate:
            resized = reference.at(height, width)
            report = resized.report(candidate, manifest.precision, reference.pictures[:_PICTURES_OF_A_SIZE])
        report = replace(report, informative=report.pictures)
        if manifest.precision == "fp32":
            report.raise_if_failed(f"{manifest.checkpoint} at {size}")
        elif not report:
            progress(f"at {size} the masks are beyond the contract ({'; '.join(report.failures)})")
        found[size] = {**{name: getattr(report, name) for name in MEASURES}, "passed": bool(report)}
    return found
