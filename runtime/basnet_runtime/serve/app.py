"""HTTP application: routes for pictures, health, metrics, page; mounts `v2`.

    app = create_app(model, ServeConfig())

It uses what `basnet-run` uses to decode, compute, compose and encode, so that results are equal byte for byte.
"""

from __future__ import annotations

import hmac
import json
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from basnet_runtime.kinds import OutputKind
from basnet_runtime.serve.body import picture_form
from basnet_runtime.serve.callers import unless_gone
from basnet_runtime.serve.metrics import CONTENT_TYPE_LATEST
from basnet_runtime.serve.problems import CLIENT_CLOSED, PROBLEM_TYPE, Problem, problem_response
from basnet_runtime.serve.service import Answer, PictureTask, Service, defect
from basnet_runtime.serve.v2 import add_v2_routes
from basnet_torch import __version__
from basnet_torch.errors import UsageError

if TYPE_CHECKING:
    from basnet_runtime.model import SaliencyModel
    from basnet_runtime.serve.config import ServeConfig

__all__ = ["create_app"]

_MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff"}
_PAGE_FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")}
_PAGE_FILES["/page.js"] = ("page.js", "text/javascript")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", *_PAGE_FILES)
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class PictureOptions(BaseModel):
    """Query of `/v1/mask`, `/v1/cutout` and `/v1/overlay`."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["png", "jpg", "webp", "tiff"] = Field("png", description="Format of the answer.")
    threshold: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="Share from which a mask's value is foreground."
    )
    feather: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="Blur of the mask's edge, pixels.")
    refine_edges: bool = Field(False, description="Refine the mask's edges by the picture's.")  # noqa: FBT003
    empty_weak: bool = Field(False, description="Empty the mask where nothing salient was found.")  # noqa: FBT003
    page: int | None = Field(None, ge=1, le=1_000_000, description="Page of TIFF, HEIF, AVIF and ICO, from 1.")


class ComposeOptions(PictureOptions):
    """Query of `/v1/compose`."""

    kind: str = Field(
        "color:#ffffff",
        max_length=40,
        json_schema_extra={"pattern": "^(side|blur|color:#?[0-9a-fA-F]{6})$"},
        description="side, color:#rrggbb or blur; a form field `background` replaces it.",
    )


Options = TypeVar("Options", bound=PictureOptions)


def create_app(model: SaliencyModel, config: ServeConfig) -> FastAPI:
    """Create the application of an opened model; its service is `app.state.service`.

    Args:
        model: What `open_model` gives.
        config: Bounds and token.
    """
    service = Service(model, config)
    app = FastAPI(
        title="basnet-serve",
        version=__version__,
        summary="Salient object masks and cut-outs over HTTP.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for raised in (Problem, HTTPException, ClientDisconnect):  # one form for every refusal, whoever raised it
        app.add_exception_handler(raised, _refused)
    _add_health(app, service)
    for kind in ("mask", "cutout", "overlay"):
        _add_picture_route(app, service, kind)
    _add_compose_route(app, service)
    folder = files("basnet_runtime.serve") / "page"
    for route, (name, media_type) in _PAGE_FILES.items():
        app.add_api_route(route, _page((folder / name).read_bytes(), media_type), include_in_schema=False)
    add_v2_routes(app, service)
    app.add_middleware(_Edge, service=service)
    return app


def _add_picture_route(app: FastAPI, service: Service, kind: Literal["mask", "cutout", "overlay"]) -> None:
    async def make(request: Request) -> Response:
        return await _answered(request, service, OutputKind(name=kind), _options(PictureOptions, request))

    app.post(f"/v1/{kind}", **_described(kind, PictureOptions, forms=False))(make)


def _add_compose_route(app: FastAPI, service: Service) -> None:
    async def compose(request: Request) -> Response:
        options = _options(ComposeOptions, request)
        try:
            kind = OutputKind.parse(options.kind)
        except UsageError:
            kind = OutputKind(name="image")
        if kind.name not in ("side", "color", "blur"):
            # The command takes image:FILE; here that would read the server's files.
            raise Problem(
                422, "kind: must be side, color:#rrggbb or blur. Send a background as the form field background"
            )
        return await _answered(request, service, kind, options)

    app.post("/v1/compose", **_described("compose", ComposeOptions, forms=True))(compose)


def _options(kind: type[Options], request: Request) -> Options:
    """The query, read here: FastAPI would take 0.2 ms of CPU time for it, as much as a sixth of all of HTTP."""
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Problem(422, f"{where}: {first['msg'].lower()}", reason="option") from error


def _described(kind: str, options: type[PictureOptions], *, forms: bool) -> dict[str, Any]:
    """What OpenAPI says of a picture route: FastAPI sees neither its query nor a body that is read as a stream."""
    query = [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in options.model_json_schema()["properties"].items()
    ]
    binary = {"type": "string", "format": "binary"}
    fields = {"image": binary} | ({"background": binary} if forms else {})
    form = {"type": "object", "required": ["image"], "properties": fields, "additionalProperties": False}
    problem = {"content": {PROBLEM_TYPE: {"schema": {"type": "object"}}}}
    statuses = {
        400: "The body is broken.",
        401: "The token is missing or wrong.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body's type or encoding is not known.",
        422: "The picture or an option is refused.",
        429: "Too many pictures wait.",
        500: "The model failed.",
        503: "No turn in time, or the server is stopping.",
    }
    pictures = {kind: {"schema": binary} for kind in _MEDIA_TYPES.values()}
    return {
        "operation_id": kind,
        "summary": f"{kind.capitalize()} of a picture",
        "response_class": Response,
        "responses": {200: {"description": "The result.", "content": pictures}}
        | {status: {"description": text, **problem} for status, text in statuses.items()},
        "openapi_extra": {
            "parameters": query,
            "requestBody": {
                "required": True,
                "content": {"image/*": {"schema": binary}, "multipart/form-data": {"schema": form}},
            },
        },
    }


async def _answered(request: Request, service: Service, kind: OutputKind, options: PictureOptions) -> Response:
    task = PictureTask(
        kind=kind,
        format=options.format,
        threshold=options.threshold,
        feather=options.feather,
        refine_edges=options.refine_edges,
        empty_weak=options.empty_weak,
        page=options.page,
    )
    async with picture_form(request, service.bodies) as form:
        if "background" in form and request.url.path != "/v1/compose":
            raise Problem(422, "form field background: is for /v1/compose alone")
        answer = await unless_gone(request, service.run(form["image"], task, form.get("background")))
        request.state.facts = _facts(answer, form["image"].size)
    return Response(
        answer.data,
        media_type=_MEDIA_TYPES[options.format],
        headers={
            "X-Salient": "true" if answer.decision.salient else "false",
            "X-Salience-Score": f"{answer.decision.score:.4f}",
        },
    )


def _facts(answer: Answer, received: int) -> dict[str, Any]:
    return {
        "bytes": received,
        "pixels": answer.height * answer.width,
        "wait_ms": round(answer.wait_seconds * 1000, 1),
        "network_ms": round(answer.network_seconds * 1000, 1),
        "salient": answer.decision.salient,
        "score": round(answer.decision.score, 4),
    }


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health/live", summary="The process answers", operation_id="live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    stopping: dict[int | str, dict[str, Any]] = {503: {"description": "The server is stopping."}}

    @app.get("/health/ready", summary="Requests are taken", operation_id="ready", responses=stopping)
    async def ready() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}

    if service.config.metrics_port is None:

        @app.get("/metrics", summary="Prometheus metrics", operation_id="metrics", response_class=Response)
        async def metrics() -> Response:
            return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _page(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response(content, media_type=media_type, headers=headers)

    return page


async def _refused(request: Request, error: Exception) -> Response:
    problem = _problem(request, error)
    request.state.problem = problem
    return problem_response(request, problem)


def _problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        detail = f"{request.method} {request.url.path[:80]}: {error.detail.lower()}"
        return Problem(error.status_code, detail, headers=dict(error.headers or {}))
    return Problem(CLIENT_CLOSED, "the caller left", reason="left")


class _Edge:
    """Around every request: token, counts, one log line; plain ASGI, since Starlette's middleware hides who left."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request = Request(scope, receive)
        status, has_begun = CLIENT_CLOSED, False

        async def sending(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
            await send(message)

        request.state.facts, request.state.body_bytes = {}, 0
        try:
            if problem := self._unauthorized(request):
                request.state.problem = problem
                await problem_response(request, problem)(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - a defect ends its own request, in the form that its clients read
            problem = request.state.problem = defect(error)
            if not has_begun:
                await problem_response(request, problem)(scope, receive, sending)
        finally:
            self._service.bodies.give_back(request)
            self._note(request, status, time.perf_counter() - began)

    def _unauthorized(self, request: Request) -> Problem | None:
        token = self._service.config.token
        if token is None or request.url.path in _OPEN:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return None
        return Problem(
            401,
            "token: missing or wrong. Send the header Authorization: Bearer TOKEN",
            reason="token",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _note(self, request: Request, status: int, seconds: float) -> None:
        route = getattr(request.scope.get("route"), "path", "unknown")
        metrics = self._service.metrics
        metrics.requests.labels(route, str(status)).inc()
        problem: Problem | None = getattr(request.state, "problem", None)
        if problem is not None:
            metrics.refused.labels(problem.reason).inc()
        if (
            route in ("/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/health/ready")
            and status < 400
        ):
            return  # probes would drown the rest
        line: dict[str, Any] = {"id": uuid.uuid4().hex[:12], "method": request.method, "route": route, "status": status}
        line["ms"] = round(seconds * 1000, 1)
        line |= request.state.facts
        if problem is not None:
            line["detail"] = problem.note or problem.detail
        if found := _TRACE_PARENT.fullmatch(request.headers.get("traceparent", "")):
            line |= {"trace_id": found[1], "span_id": found[2]}
        if self._service.config.log_clients and request.client is not None:
            line["client"] = request.client.host
        _log(line)


def _log(line: dict[str, Any]) -> None:
    """One line: words on a terminal, JSON otherwise."""
    if sys.stderr is None:
        return
    text = json.dumps(line)
    if sys.stderr.isatty():
        shown = {key: value if str(value).isprintable() else json.dumps(value) for key, value in line.items()}
        text = " ".join(f"{key}={value}" for key, value in shown.items())
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the server's log
