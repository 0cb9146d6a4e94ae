"""Open Inference Protocol v2 over HTTP: network tensors and pictures.

Two models are served: `NAME`, the file's own graph, which takes and gives what Triton's repository of that file does;
and `NAME-frames`, which takes pictures, uint8 N,H,W,3 of any size, and gives the masks of `basnet-run`, uint8 N,H,W.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from starlette.responses import Response

from basnet_runtime.serve.body import body_bytes
from basnet_runtime.serve.callers import unless_gone
from basnet_runtime.serve.problems import Problem
from basnet_torch import __version__

if TYPE_CHECKING:
    from basnet_runtime.serve.service import Service
    from basnet_torch.spec import TensorSpec

__all__ = ["add_v2_routes"]

_TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_NAMES = {"float32": "FP32", "uint8": "UINT8"}
_HEADER_LENGTH = "inference-header-content-length"
_VERSION = "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """One input or output of a served model; -1 axes are free."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def described(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Served:
    """One model by its name, what it takes and gives, and what runs it."""

    name: str
    input: _Tensor
    output: _Tensor
    run: Callable[[NDArray[Any]], Coroutine[Any, Any, NDArray[Any]]]


def add_v2_routes(app: FastAPI, service: Service) -> None:
    """Add `/v2` and what lies below it; all its errors are `{"error": ...}`."""
    routes = _Routes(service)

    def add(path: str, answer: Callable[..., Any], method: str = "GET") -> None:
        app.add_api_route(path, answer, methods=[method], response_model=None, include_in_schema=False)

    add("/v2", routes.server)
    add("/v2/health/live", routes.live)
    add("/v2/health/ready", routes.ready)
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        add(prefix, routes.metadata)
        add(f"{prefix}/ready", routes.model_ready)
        add(f"{prefix}/infer", routes.infer, "POST")


class _Routes:
    """What the routes answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._models = _served(service)

    async def server(self) -> dict[str, Any]:
        return {"name": "basnet-serve", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def live(self) -> dict[str, bool]:
        return {"live": True}

    async def ready(self) -> dict[str, bool]:
        self._service.check_ready()
        return {"ready": True}

    async def metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        found = self._model(name, version)
        return {
            "name": found.name,
            "versions": [_VERSION],
            "platform": f"basnet_{self._service.model.backend.name}",
            "inputs": [found.input.described],
            "outputs": [found.output.described],
        }

    async def model_ready(self, name: str, version: str | None = None) -> dict[str, bool]:
        self._model(name, version)
        return await self.ready()

    async def infer(self, request: Request, name: str, version: str | None = None) -> Response:
        return await _infer(request, self._service, self._model(name, version))

    def _model(self, name: str, version: str | None) -> _Served:
        if name not in self._models:
            raise Problem(404, f"model: {name[:80]!r}, must be {' or '.join(self._models)}")
        if version not in (None, _VERSION):
            raise Problem(404, f"model version: {version[:20]!r}, must be {_VERSION}")
        return self._models[name]


def _served(service: Service) -> dict[str, _Served]:
    backend = service.model.backend
    name = PurePath(service.model.name).stem
    size = None if service.model.takes_frames else (service.model.preprocess.height, service.model.preprocess.width)
    own = _Served(
        name=name, input=_tensor(backend.input, size), output=_tensor(backend.output, size), run=service.tensors
    )
    frames = _Served(
        name=f"{name}-frames",
        input=_Tensor(name="frame", datatype="UINT8", shape=(-1, -1, -1, 3)),
        output=_Tensor(name="mask", datatype="UINT8", shape=(-1, -1, -1)),
        run=service.frames,
    )
    return {model.name: model for model in (own, frames)}


def _tensor(spec: TensorSpec, size: tuple[int, int] | None) -> _Tensor:
    """The tensor; a free height and width are those that the model runs at, since a larger one takes any memory."""
    axes = (*spec.shape[:2], *size) if size and spec.shape[2:] == (None, None) else spec.shape
    shape = tuple(-1 if axis is None else int(axis) for axis in axes)
    return _Tensor(name=spec.name, datatype=_NAMES[spec.dtype], shape=shape)


async def _infer(request: Request, service: Service, model: _Served) -> Response:
    body = await body_bytes(request, service.bodies)
    header, binary = _header(request, body)
    batch = _input(header, binary, model.input, service.config.max_pixels)
    if not np.isfinite(batch).all():
        raise Problem(400, f"input {model.input.name}: has values that are no finite numbers")
    output, as_binary = _wanted(header, model.output)
    found = await unless_gone(request, model.run(batch))
    found = np.ascontiguousarray(found, _TYPES[model.output.datatype])
    answer: dict[str, Any] = {"model_name": model.name, "model_version": _VERSION}
    if isinstance(header.get("id"), str):
        answer["id"] = header["id"]
    described: dict[str, Any] = {"name": output, "datatype": model.output.datatype, "shape": list(found.shape)}
    answer["outputs"] = [described]
    request.state.facts = {"bytes": len(body), "pictures": len(batch)}
    data = b""
    if as_binary:
        data = found.tobytes()
        described["parameters"] = {"binary_data_size": len(data)}
    else:
        described["data"] = found.reshape(-1).tolist()
    head = json.dumps(answer, separators=(",", ":")).encode()
    if not as_binary:
        return Response(head, media_type="application/json")
    return Response(
        head + data, media_type="application/octet-stream", headers={"Inference-Header-Content-Length": str(len(head))}
    )


def _header(request: Request, body: bytes) -> tuple[dict[str, Any], bytes]:
    length = request.headers.get(_HEADER_LENGTH)
    end = len(body)
    if length is not None:
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > len(body):
            raise Problem(400, f"{_HEADER_LENGTH}: {length[:20]!r}, must be at most the body's {len(body)} bytes")
        end = int(length)
    try:
        header = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise Problem(400, "request: its JSON cannot be parsed") from error
    if not isinstance(header, dict):
        raise Problem(400, "request: must be a JSON object with inputs")
    return header, body[end:]


def _input(header: dict[str, Any], binary: bytes, wanted: _Tensor, max_pixels: int) -> NDArray[Any]:
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Problem(400, f"inputs: must be one tensor, {wanted.name} {wanted.datatype} {list(wanted.shape)}")
    given = inputs[0]
    if given.get("name") != wanted.name or given.get("datatype") != wanted.datatype:
        said = f"{str(given.get('name'))[:40]} {str(given.get('datatype'))[:20]}"
        raise Problem(400, f"input: {said}, must be {wanted.name} {wanted.datatype} {list(wanted.shape)}")
    shape = _shape(given.get("shape"), wanted)
    if math.prod(shape) > 3 * max_pixels:
        raise Problem(400, f"input {wanted.name}: shape {shape}, has more than {max_pixels:,} pixels in all")
    dtype = _TYPES[wanted.datatype]
    parameters = given.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return _from_json(given.get("data"), shape, dtype, wanted.name)
    expected = math.prod(shape) * dtype.itemsize
    if size != expected or len(binary) != expected:
        raise Problem(400, f"input {wanted.name}: {len(binary)} binary bytes, must be {expected} for shape {shape}")
    return np.frombuffer(binary, dtype).reshape(shape)


def _shape(shape: Any, wanted: _Tensor) -> list[int]:
    if (
        isinstance(shape, list)
        and len(shape) == len(wanted.shape)
        and all(type(axis) is int and axis > 0 for axis in shape)
        and all(free in (-1, axis) for axis, free in zip(shape, wanted.shape, strict=True))
    ):
        return shape
    raise Problem(400, f"input {wanted.name}: shape {str(shape)[:60]}, must be {list(wanted.shape)}, -1 any from 1")


def _from_json(data: Any, shape: list[int], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    try:
        flat = np.asarray(data, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise Problem(400, f"input {name}: data must be numbers, nested or flat") from error
    if flat.size != math.prod(shape):
        raise Problem(400, f"input {name}: {flat.size} values, must be {math.prod(shape)} for shape {shape}")
    if dtype == np.uint8 and not ((flat >= 0) & (flat <= 255) & (flat == np.floor(flat))).all():
        raise Problem(400, f"input {name}: values must be whole numbers from 0 to 255")
    with np.errstate(over="ignore"):  # what FP32 does not hold is refused as infinite
        return np.ascontiguousarray(flat.astype(dtype).reshape(shape))


def _wanted(header: dict[str, Any], output: _Tensor) -> tuple[str, bool]:
    """The output's name, and whether it goes back as bytes."""
    parameters = header.get("parameters")
    as_binary = bool(parameters.get("binary_data_output")) if isinstance(parameters, dict) else False
    outputs = header.get("outputs")
    if outputs is None or outputs == []:
        return output.name, as_binary
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise Problem(400, f"outputs: must be left out or be one, {output.name}")
    if outputs[0].get("name") != output.name:
        raise Problem(400, f"output: {str(outputs[0].get('name'))[:40]!r}, must be {output.name}")
    own = outputs[0].get("parameters")
    if isinstance(own, dict):
        if own.get("classification"):
            raise Problem(400, f"output {output.name}: classification is for classifiers, must be left out")
        as_binary = bool(own.get("binary_data", as_binary))
    return output.name, as_binary
