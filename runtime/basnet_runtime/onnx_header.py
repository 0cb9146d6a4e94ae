"""What an ONNX file says about itself, read without onnx, onnxruntime or protobuf: any machine can inspect any file.

Only the outermost fields of the protobuf message are walked and weights are skipped over, so that a file of hundreds
of megabytes is described in a millisecond, and a web page or a half-finished download is told from a model.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from basnet_torch.errors import ModelFileError
from basnet_torch.spec import TensorSpec

__all__ = ["OnnxHeader", "read_onnx_header", "refuse_foreign"]

# Field numbers of onnx.proto, by message.
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSET, _METADATA = 1, 2, 3, 7, 8, 14
_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 11, 12
_ELEMENTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxHeader:
    """The outside of a graph.

    Attributes:
        producer: Name and version of the program that wrote it.
        opset: Version of the standard operators.
        metadata: The file's own key-value pairs.
        inputs: What it takes.
        outputs: What it returns.
        nodes: How many operations it has.
    """

    producer: str
    opset: int
    metadata: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int


def read_onnx_header(path: Path) -> OnnxHeader:
    """Walk the file once.

    Raises:
        ModelFileError: For a missing, unreadable, empty, truncated or foreign file, in one line.
    """
    content = _content(path)
    size = len(content)
    refuse_foreign(path, content[:512], size)
    try:
        return _header(memoryview(content))
    except ValueError as error:  # also what is no UTF-8
        raise ModelFileError(
            f"{path}: {size:,} bytes that are no complete ONNX file ({error}); get it again"
        ) from error


def _content(path: Path) -> mmap.mmap:
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
    """Raise ModelFileError for what downloads leave instead of a file, and for another tool's files."""
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
    for field, value in _fields(view):
        if field == _GRAPH and isinstance(value, memoryview):
            graph = value
        elif field in (_PRODUCER, _PRODUCER_VERSION):
            texts[field] = _text(value)
        elif field == _METADATA:
            entry = {f: _text(v) for f, v in _fields(value)}
            metadata[entry.get(1, "")] = entry.get(2, "")
        elif field == _OPSET:
            opset = max(opset, _opset(value))
        elif field == _IR_VERSION and isinstance(value, int):
            ir_version = value
    if graph is None or not ir_version:
        raise ValueError("it holds no graph")
    parts = [(field, value) for field, value in _fields(graph) if field in (_GRAPH_NODE, _GRAPH_INPUT, _GRAPH_OUTPUT)]
    return OnnxHeader(
        producer=" ".join(texts.values()) or "unknown",
        opset=opset,
        metadata=metadata,
        inputs=tuple(_tensor(value) for field, value in parts if field == _GRAPH_INPUT),
        outputs=tuple(_tensor(value) for field, value in parts if field == _GRAPH_OUTPUT),
        nodes=sum(field == _GRAPH_NODE for field, _ in parts),
    )


def _opset(value: int | memoryview) -> int:
    """The version of an operator set when it is the standard one, else 0."""
    entry = dict(_fields(value))
    version = entry.get(2, 0)
    return version if isinstance(version, int) and not _text(entry.get(1, 0)) else 0


def _tensor(value: int | memoryview) -> TensorSpec:
    """A ValueInfo as name, type and axes; an axis without a number is dynamic."""
    info = dict(_fields(value))
    tensor = dict(_fields(dict(_fields(info.get(2, 0))).get(1, 0)))
    axes = []
    for field, axis in _fields(tensor.get(2, 0)):
        length = dict(_fields(axis)).get(1)
        if field == 1:
            axes.append(length if isinstance(length, int) else None)
    element = tensor.get(1, 0)
    dtype = _ELEMENTS.get(element, "unknown") if isinstance(element, int) else "unknown"
    return TensorSpec(name=_text(info.get(1, 0)), dtype=dtype, shape=tuple(axes))


def _text(value: int | memoryview) -> str:
    return "" if isinstance(value, int) else bytes(value).decode()


def _fields(view: int | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message: numbers as int, everything with a length as a view, nothing copied."""
    if isinstance(view, int):
        return
    at = 0
    while at < len(view):
        tag, at = _varint(view, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(view, at)
            yield field, value
            continue
        if wire == _BYTES:
            length, at = _varint(view, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("it is no protobuf message")
        if not field or at + length > len(view):
            raise ValueError("it ends in the middle" if field else "it is no protobuf message")
        yield field, view[at : at + length]
        at += length


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number in seven-bit groups, lowest first, and where it ends."""
    value = shift = 0
    while shift < 70:
        if at >= len(view):
            raise ValueError("it ends in the middle")
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it is no protobuf message")
