"""ONNX header reader, without onnx, onnxruntime or protobuf.

Only the outermost fields of the protobuf message are walked and weights are skipped over, so that a file of hundreds
of megabytes is described in a millisecond, and a web page or a half-finished download is recognized.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from basnet_runtime.onnx_file.protobuf import fields, text
from basnet_torch.errors import ModelFileError
from basnet_torch.spec import TensorSpec

__all__ = ["OnnxHeader", "file_content", "read_onnx_header", "refuse_foreign"]

# Field numbers of onnx.proto, by message.
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSET, _METADATA = 1, 2, 3, 7, 8, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_TENSOR_NAME, _TENSOR_LOCATION = 8, 14
_ELEMENTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"}


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxHeader:
    """The outside of a graph.

    Attributes:
        producer: Name and version of the program that wrote it.
        opset: Version of the standard operators.
        metadata: The file's own key-value pairs.
        inputs: What it takes; not the weights, which files of before 2019 list as inputs too.
        outputs: What it returns.
        nodes: How many operations it has.
        external: Whether weights are in other files beside it.
    """

    producer: str
    opset: int
    metadata: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    external: bool = False


def read_onnx_header(path: Path) -> OnnxHeader:
    """Walk the file once.

    Raises:
        ModelFileError: For a missing, unreadable, empty, truncated or foreign file, in one line.
    """
    content = file_content(path)
    size = len(content)
    refuse_foreign(path, content[:512], size)
    try:
        return _header(memoryview(content))
    except ValueError as error:  # also what is no UTF-8
        raise ModelFileError(
            f"{path}: {size:,} bytes that are no complete ONNX file ({error}); get it again"
        ) from error


def file_content(path: Path) -> mmap.mmap:
    """The file's bytes, unmapped with the last view of them."""
    try:
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file; give the path of an .onnx model")
        if not path.stat().st_size:
            raise ModelFileError(f"{path}: the file is empty; download or export it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); see who may read it") from error


def refuse_foreign(path: Path, head: bytes, size: int) -> None:
    """Raise ModelFileError for failed downloads and other tools' files."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ModelFileError(f"{path}: is a web page of {size:,} bytes, not a model; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{path}: is a Git LFS pointer, not the file; run 'git lfs pull'")
    if head.startswith(b"PK"):
        raise ModelFileError(f"{path}: is a zip or PyTorch file under the name of an ONNX model; rename it to .pth")


def _header(view: memoryview) -> OnnxHeader:
    texts: dict[int, str] = {}
    metadata: dict[str, str] = {}
    opset, ir_version, graph = 0, 0, None
    for field, value in fields(view):
        if field == _GRAPH and isinstance(value, memoryview):
            graph = value
        elif field in (_PRODUCER, _PRODUCER_VERSION):
            texts[field] = text(value)
        elif field == _METADATA:
            entry = {f: text(v) for f, v in fields(value)}
            metadata[entry.get(1, "")] = entry.get(2, "")
        elif field == _OPSET:
            opset = max(opset, _opset(value))
        elif field == _IR_VERSION and isinstance(value, int):
            ir_version = value
    if graph is None or not ir_version:
        raise ValueError("it holds no graph")
    parts = list(fields(graph))
    weights = [dict(fields(value)) for field, value in parts if field == _GRAPH_INITIALIZER]
    named = {text(weight.get(_TENSOR_NAME, 0)) for weight in weights}
    inputs = (_tensor(value) for field, value in parts if field == _GRAPH_INPUT)
    return OnnxHeader(
        producer=" ".join(texts.values()) or "unknown",
        opset=opset,
        metadata=metadata,
        inputs=tuple(tensor for tensor in inputs if tensor.name not in named),
        outputs=tuple(_tensor(value) for field, value in parts if field == _GRAPH_OUTPUT),
        nodes=sum(field == _GRAPH_NODE for field, _ in parts),
        external=any(weight.get(_TENSOR_LOCATION) == 1 for weight in weights),
    )


def _opset(value: int | memoryview) -> int:
    """The version of an operator set when it is the standard one, else 0."""
    entry = dict(fields(value))
    version = entry.get(2, 0)
    return version if isinstance(version, int) and text(entry.get(1, 0)) in ("", "ai.onnx") else 0


def _tensor(value: int | memoryview) -> TensorSpec:
    """A ValueInfo as name, type and axes; an axis without a number is dynamic."""
    info = dict(fields(value))
    tensor = dict(fields(dict(fields(info.get(2, 0))).get(1, 0)))
    axes = []
    for field, axis in fields(tensor.get(2, 0)):
        length = dict(fields(axis)).get(1)
        if field == 1:
            axes.append(length if isinstance(length, int) and 0 < length < 1 << 63 else None)  # -1 is free as well
    element = tensor.get(1, 0)
    dtype = _ELEMENTS.get(element, "unknown") if isinstance(element, int) else "unknown"
    return TensorSpec(name=text(info.get(1, 0)), dtype=dtype, shape=tuple(axes))
