"""Adapted copy of a foreign graph: float32 in and out, fixed height and width.

    with adapted(path, adaptation) as runnable:
        session = InferenceSession(runnable)

The file itself is never changed. Weights are copied as bytes, so that hundreds of megabytes take no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from basnet_runtime.onnx_file.header import OnnxHeader, file_content
from basnet_runtime.onnx_file.protobuf import encoded, fields, spans, text, varint
from basnet_torch.errors import ModelFileError
from basnet_torch.files import scratch_folder
from basnet_torch.spec import TensorSpec

__all__ = ["Activation", "Adaptation", "adaptation_of", "adapted", "external_data"]

Activation = Literal["none", "sigmoid"]
_GRAPH = 7  # of a ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # of a GraphProto
_NAME, _RAW_DATA, _EXTERNAL_DATA, _LOCATION = 8, 9, 13, 14  # of a TensorProto
_FLOAT = 1
_INT = 2  # AttributeProto.type
_MOST_BYTES = (1 << 31) - 1  # of a protobuf message


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """What is changed in the copy.

    Attributes:
        input: The graph's input as the file has it.
        output: The output that is kept, as the file has it.
        size: Height and width to fix.
        activation: What still belongs behind the output.
    """

    input: TensorSpec
    output: TensorSpec
    size: tuple[int, int]
    activation: Activation = "none"


def adaptation_of(
    header: OnnxHeader, output: TensorSpec, size: tuple[int, int], activation: Activation
) -> Adaptation | None:
    """What has to be changed for the graph to run; None where it runs as it is."""
    (taken,) = header.inputs
    as_it_is = (
        header.outputs == (output,)
        and taken.dtype == output.dtype == "float32"
        and taken.shape[1:] == (3, *size)
        and activation == "none"
        and not header.external
    )
    return None if as_it_is else Adaptation(input=taken, output=output, size=size, activation=activation)


@contextmanager
def adapted(path: Path, adaptation: Adaptation | None) -> Iterator[Path]:
    """Yield the adapted copy, a temporary file, or the file where nothing changes.

    Raises:
        ModelFileError: Weights in other files are not there, or too large for one file.
    """
    if adaptation is None:
        yield path
        return
    with scratch_folder() as folder:
        copy = folder / path.name
        with copy.open("wb") as file:
            file.writelines(_model(path, adaptation))
        yield copy


def _model(path: Path, adaptation: Adaptation) -> list[bytes | memoryview]:
    pieces: list[bytes | memoryview] = []
    for field, value, whole in spans(memoryview(file_content(path))):
        if field != _GRAPH or isinstance(value, int):
            pieces.append(whole)
            continue
        graph = _graph(path, value, adaptation)
        length = sum(map(len, graph))
        if length > _MOST_BYTES:
            raise ModelFileError(
                f"{path}: has {length:,} bytes of weights, at most 2 GiB fit one file. Convert to fp16"
            )
        pieces += [varint(_GRAPH << 3 | 2), varint(length), *graph]
    return pieces


def _graph(path: Path, graph: memoryview, adaptation: Adaptation) -> list[bytes | memoryview]:
    taken, given = adaptation.input, adaptation.output
    batch, size = taken.shape[0], adaptation.size
    fed, made = taken.name, given.name
    before: list[bytes] = []
    after: list[bytes] = []
    if taken.dtype != "float32":
        fed = f"{taken.name}/float32"
        before.append(_node("Cast", fed, taken.name, to=10))
    if given.dtype != "float32":
        after.append(_node("Cast", made, made := f"{given.name}/float32", to=_FLOAT))
    if adaptation.activation == "sigmoid":
        after.append(_node("Sigmoid", made, made := f"{given.name}/sigmoid"))
    pieces: list[bytes | memoryview] = list(before)
    for field, value, whole in spans(graph):
        if field == _OUTPUT or (field == _INPUT and text(dict(fields(value)).get(1, 0)) == taken.name):
            continue
        inlined = _inlined(path, value) if field == _INITIALIZER else None
        if inlined is None:
            pieces.append(whole)
        else:
            pieces += [varint(_INITIALIZER << 3 | 2), varint(sum(map(len, inlined))), *inlined]
    return [
        *pieces,
        *after,
        encoded(_INPUT, _value_info(fed, (batch, 3, *size))),
        encoded(_OUTPUT, _value_info(made, given.shape)),
    ]


def _node(operation: str, taken: str, given: str, **numbers: int) -> bytes:
    """A NodeProto as a field of its graph."""
    body = encoded(1, taken) + encoded(2, given) + encoded(3, given) + encoded(4, operation)
    for name, number in numbers.items():
        body += encoded(5, encoded(1, name) + encoded(3, number) + encoded(20, _INT))
    return encoded(_NODE, body)


def _value_info(name: str, shape: Sequence[int | None]) -> bytes:
    """A float32 ValueInfoProto; free axes are named by their place."""
    axes = (
        encoded(1, encoded(2, f"{name}/{place}") if length is None else encoded(1, length))
        for place, length in enumerate(shape)
    )
    tensor = encoded(1, _FLOAT) + encoded(2, b"".join(axes))
    return encoded(1, name) + encoded(2, encoded(1, tensor))


def _inlined(path: Path, tensor: int | memoryview) -> list[bytes | memoryview] | None:
    """A tensor whose values are in another file, as one that holds them; None where it holds them already."""
    if dict(fields(tensor)).get(_LOCATION) != 1:
        return None
    kept = [whole for field, _, whole in spans(tensor) if field not in (_EXTERNAL_DATA, _LOCATION)]
    data = external_data(path, tensor)
    return [*kept, varint(_RAW_DATA << 3 | 2), varint(len(data)), data]


def external_data(path: Path, tensor: int | memoryview) -> memoryview:
    """Read the values of a tensor that names an external data file.

    It must be in the model's folder or below it.

    Raises:
        ModelFileError: That file is missing, elsewhere, or too short.
    """
    entries = (dict(fields(value)) for field, value in fields(tensor) if field == _EXTERNAL_DATA)
    told = {text(entry.get(1, 0)): text(entry.get(2, 0)) for entry in entries}
    place = path.parent / told.get("location", "")
    if not place.resolve().is_relative_to(path.parent.resolve()):
        raise ModelFileError(f"{path}: keeps weights in {place}, they must be in its own folder. Save it as one file")
    if not place.is_file():
        raise ModelFileError(f"{path}: keeps weights in {place.name}, which is not there. Put that file beside it")
    start = int(told.get("offset", "0"))
    content = memoryview(file_content(place))
    stop = start + int(told["length"]) if "length" in told else len(content)
    if not 0 <= start <= stop <= len(content):
        raise ModelFileError(f"{place}: is cut short, {path.name} needs {stop:,} bytes of it. Get it again")
    return content[start:stop]
