"""Digest and precision of an ONNX graph's content, whatever a manifest says.

The digest is of what the outputs are computed of: operations, attributes, weights, input types and sizes. Names of
nodes and values, their order, notes, metadata, and where weights are kept do not count, so that another tool may write
the same graph again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from basnet_runtime.kinds import Precision
from basnet_runtime.onnx_file.adapt import external_data
from basnet_runtime.onnx_file.header import file_content
from basnet_runtime.onnx_file.protobuf import fields, numbers_of, text
from basnet_torch.errors import ModelFileError

__all__ = ["GraphContent", "graph_content", "read_graph_content"]

_GRAPH, _OPSET, _FUNCTION = 7, 8, 25  # of a ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15  # of a GraphProto
# Of a TensorProto
_DIMS, _TYPE, _FLOATS, _INT32S, _STRINGS, _INT64S = 1, 2, 4, 5, 6, 7
_TENSOR_NAME, _RAW, _DOUBLES, _UINT64S, _LOCATION = 8, 9, 10, 11, 14
_INTEGERS = (2, 3, 4, 5, 21, 22)  # of 8, 16 and 4 bits
_EIGHT_BIT_FLOATS = (17, 18, 19, 20)
_FLOAT_TYPES: dict[int, Precision] = {1: "fp32", 10: "fp16", 16: "bf16"}
_BYTES = {2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 9: 1, 10: 2, 16: 2, 17: 1, 18: 1, 19: 1, 20: 1}  # of what int32_data holds
_BYTES |= dict.fromkeys(range(21, 27), 1)  # two or four packed numbers
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_PASSING = ("Identity", "Mul", "Reshape", "Transpose", "Unsqueeze", "Squeeze")
_Field = int | memoryview
_Attributes = Mapping[str, list[tuple[int, _Field]]]
_Types = dict[str, tuple[int, int]]  # of weights: their type, and how many numbers
_INTEGER = ("ConvInteger", "MatMulInteger", "DynamicQuantize", "QLinear", "QGemm", "QAttention")  # begin so


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphContent:
    """What was read.

    Attributes:
        sha256: Digest of what the graph computes.
        precision: What its convolutions compute in; `int8` or `fp8` as soon as activations are quantized.
        store: What most of their weights are kept as, where it computes in floats.
    """

    sha256: str
    precision: Precision
    store: Precision


def read_graph_content(path: Path) -> GraphContent:
    """Walk all of a file.

    Raises:
        ModelFileError: It is no complete ONNX file, or weights in other files are missing.
    """
    return graph_content(memoryview(file_content(path)), path)


def graph_content(model: bytes | memoryview, path: Path) -> GraphContent:
    """`read_graph_content` of a file's bytes; `path` serves errors and external data."""
    try:
        return _Walk(path).result(memoryview(model))
    except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: is no complete ONNX file ({error}); get it again") from error


@dataclass(slots=True)
class _Arithmetic:
    """What is seen of types on the way."""

    quantized: set[Precision] = field(default_factory=set)
    computed: Counter[Precision] = field(default_factory=Counter)
    stored: Counter[Precision] = field(default_factory=Counter)

    def precision(self) -> Precision:
        if self.quantized:
            return "fp8" if self.quantized == {"fp8"} else "int8"
        return self.computed.most_common(1)[0][0] if self.computed else "fp32"


class _Walk:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _Arithmetic()
        self._functions: dict[tuple[str, str], memoryview] = {}

    def result(self, model: memoryview) -> GraphContent:
        opsets: dict[str, int] = {}
        functions, graph = [], None
        for number, value in fields(model):
            if number == _GRAPH:
                graph = value
            elif number == _OPSET:
                entry = dict(fields(value))
                opsets[text(entry.get(1, 0)).replace("ai.onnx", "")] = int(entry.get(2, 0))
            elif number == _FUNCTION:
                functions.append(_hashed(value))
                entry = dict(fields(value))
                if isinstance(value, memoryview):
                    self._functions[text(entry.get(10, 0)).replace("ai.onnx", ""), text(entry.get(1, 0))] = value
        if graph is None:
            raise ValueError("it holds no graph")
        digest = _hashed(*sorted(functions), self._graph(graph, {}, {}, opsets))
        precision, stored = self._seen.precision(), self._seen.stored
        floats = precision not in ("int8", "fp8")
        store = (stored.most_common(1)[0][0] if stored else precision) if floats else precision
        return GraphContent(sha256=digest.hex(), precision=precision, store=store)

    def _graph(self, graph: _Field, outer: Mapping[str, bytes], known: _Types, opsets: Mapping[str, int]) -> bytes:
        """Digest a graph; `outer` has the digests of the values that a branch sees."""
        values, types = dict(outer), dict(known)
        parts: dict[int, list[_Field]] = {}
        for number, value in fields(graph):
            parts.setdefault(number, []).append(value)
        for place, value in enumerate(parts.get(_INPUT, ())):
            info = dict(fields(value))
            values[text(info.get(1, 0))] = _hashed("input", place, _shape(info.get(2, 0)))
        for tensor in parts.get(_INITIALIZER, ()):
            name = text(dict(fields(tensor)).get(_TENSOR_NAME, 0))
            values[name], types[name] = self._tensor(tensor)
        for sparse in parts.get(_SPARSE, ()):
            name = text(dict(fields(dict(fields(sparse)).get(1, 0))).get(_TENSOR_NAME, 0))
            values[name], types[name] = self._sparse(sparse)
        for node in parts.get(_NODE, ()):
            self._node(node, values, types, opsets)
        names = [text(dict(fields(value)).get(1, 0)) for value in parts.get(_OUTPUT, ())]
        return _hashed(*(values.get(name, name.encode()) for name in names))

    def _node(self, node: _Field, values: dict[str, bytes], types: _Types, opsets: Mapping[str, int]) -> None:
        taken: list[str] = []
        given: list[str] = []
        operation = domain = ""
        attributes: dict[str, list[tuple[int, _Field]]] = {}
        for number, value in fields(node):
            if number == 1:
                taken.append(text(value))
            elif number == 2:
                given.append(text(value))
            elif number == 4:
                operation = text(value)
            elif number == 5:
                entry = list(fields(value))
                attributes[text(dict(entry).get(1, 0))] = entry
            elif number == 7:
                domain = text(value).replace("ai.onnx", "")
        if operation == "Constant" and "value" in attributes and given:
            values[given[0]], types[given[0]] = self._tensor(dict(attributes["value"]).get(5, 0))
            return
        said = [
            item
            for name in sorted(attributes)
            for item in (name, self._attribute(attributes[name], values, types, opsets))
        ]
        inputs = [values.get(name, name.encode()) for name in taken]
        made = _hashed(domain, opsets.get(domain, 0), operation, len(inputs), *inputs, *said)
        for place, name in enumerate(given):
            values[name] = _hashed(made, place)
        self._note_types(operation, taken, given, attributes, types)
        if (domain, operation) in self._functions:
            self._called(self._functions[domain, operation], taken, types)

    def _called(self, function: memoryview, taken: list[str], types: _Types) -> None:
        """See the types inside a function; its digest is that of its bytes."""
        names = [text(value) for number, value in fields(function) if number == 4]
        inside = {name: types[given] for name, given in zip(names, taken, strict=False) if given in types}
        values: dict[str, bytes] = {}
        for number, node in fields(function):
            if number == 7:
                self._node(node, values, inside, {})

    def _attribute(
        self, entry: list[tuple[int, _Field]], values: Mapping[str, bytes], types: _Types, opsets: Mapping[str, int]
    ) -> bytes:
        """Digest an attribute's value; `ints` may be packed or not."""
        items: list[object] = []
        for number, value in sorted(entry, key=lambda item: item[0]):
            if number in (5, 10):
                items.append(self._tensor(value)[0])
            elif number in (22, 23):
                items.append(self._sparse(value)[0])
            elif number in (6, 11):
                items.append(self._graph(value, values, types, opsets))
            elif number in (3, 8):
                items += [*numbers_of(value)]
            elif number in (2, 4, 7, 9):
                items.append(bytes(value) if not isinstance(value, int) else value)
        return _hashed(*items)

    def _tensor(self, tensor: int | memoryview) -> tuple[bytes, tuple[int, int]]:
        """Digest a tensor's values, wherever and however they are kept; its type and how many they are."""
        entry = dict(fields(tensor))
        dims = [n for number, value in fields(tensor) if number == _DIMS for n in numbers_of(value)]
        kind = entry.get(_TYPE, 0)
        if not isinstance(kind, int):
            raise TypeError("a tensor's type is no number")
        if entry.get(_LOCATION) == 1:
            data: bytes | memoryview = external_data(self._path, tensor)
        elif isinstance(raw := entry.get(_RAW), memoryview):
            data = raw
        else:
            data = b"".join(_typed(kind, number, value) for number, value in fields(tensor))
        return _hashed(kind, *dims, data), (kind, int(np.prod(dims, dtype=np.int64)))

    def _sparse(self, sparse: int | memoryview) -> tuple[bytes, tuple[int, int]]:
        """As `_tensor`, of the values that are not 0 and where they stand."""
        entry = dict(fields(sparse))
        dims = [n for number, value in fields(sparse) if number == 3 for n in numbers_of(value)]
        (kept, (kind, _)), (places, _) = self._tensor(entry.get(1, 0)), self._tensor(entry.get(2, 0))
        return _hashed(kept, places, *dims), (kind, int(np.prod(dims, dtype=np.int64)))

    def _note_types(
        self, operation: str, taken: list[str], given: list[str], attributes: _Attributes, types: _Types
    ) -> None:
        seen = self._seen
        if operation.startswith(_INTEGER):
            seen.quantized.add("int8")
        elif operation in ("QuantizeLinear", "DequantizeLinear"):
            self._note_quantization(operation, taken, given, attributes, types)
        elif operation == "Cast" and taken[0] in types:
            to = dict(attributes["to"]).get(3, 0)
            types[given[0]] = (int(to), types[taken[0]][1])
            self._note(seen.stored, types[taken[0]])
            self._note(seen.stored, types[given[0]], -1)
        elif operation in _PASSING and taken[0] in types:
            types[given[0]] = types[taken[0]]
        elif operation in _WITH_WEIGHTS and len(taken) > 1 and taken[1] in types:
            self._note(seen.computed, types[taken[1]])
            self._note(seen.stored, types[taken[1]])

    def _note_quantization(
        self, operation: str, taken: list[str], given: list[str], attributes: _Attributes, types: _Types
    ) -> None:
        """Small numbers between layers count; weights alone, which are widened when a file is loaded, do not."""
        if operation == "DequantizeLinear":
            if taken[0] in types:
                types[given[0]] = (types[taken[1]][0] if taken[1] in types else 1, types[taken[0]][1])
            return
        kind = dict(attributes["output_dtype"]).get(3, 0) if "output_dtype" in attributes else 0
        if len(taken) > 2 and taken[2] in types:
            kind = types[taken[2]][0]
        kind = kind or 2  # without a zero point it is uint8
        if taken[0] in types:
            types[given[0]] = (int(kind), types[taken[0]][1])
        elif kind in _INTEGERS:
            self._seen.quantized.add("int8")
        elif kind in _EIGHT_BIT_FLOATS:
            self._seen.quantized.add("fp8")

    @staticmethod
    def _note(counter: Counter[Precision], kind: tuple[int, int], sign: int = 1) -> None:
        precision = _FLOAT_TYPES.get(kind[0])
        if precision:
            counter[precision] += sign * kind[1]


def _typed(kind: int, number: int, value: int | memoryview) -> bytes:
    """Values that a tensor keeps in fields by type, as its raw bytes."""
    if number in (_FLOATS, _DOUBLES) and not isinstance(value, int):
        return bytes(value)
    if number == _STRINGS and not isinstance(value, int):
        return _hashed(bytes(value))
    width = _BYTES.get(kind) if number == _INT32S else {_INT64S: 8, _UINT64S: 4 if kind == 12 else 8}.get(number)
    if width is None:
        return b""
    return b"".join((n & ((1 << 8 * width) - 1)).to_bytes(width, "little") for n in numbers_of(value))


def _shape(kind: int | memoryview) -> bytes:
    """Digest a type with its axes; free axes count by being free, not by name."""
    tensor = dict(fields(dict(fields(kind)).get(1, 0)))
    axes: Iterator[int | memoryview] = (axis for number, axis in fields(tensor.get(2, 0)) if number == 1)
    lengths = (dict(fields(axis)).get(1, "free") for axis in axes)
    return _hashed(tensor.get(1, 0) if isinstance(tensor.get(1, 0), int) else 0, *map(str, lengths))


def _hashed(*items: object) -> bytes:
    """Digest of values, each with its kind and length, so that no two lists are taken for one."""
    digest = hashlib.sha256()
    for item in items:
        binary = isinstance(item, bytes | memoryview)
        data = item if isinstance(item, bytes | memoryview) else str(item).encode()
        digest.update(f"{'b' if binary else type(item).__name__[0]}{len(data)}:".encode())
        digest.update(data)
    return digest.digest()
