"""`basnet-serve`: the model over HTTP."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from basnet_runtime.serve.config import ServeConfig
from basnet_torch.console import say
from basnet_torch.errors import BackendUnavailable, UsageError, exit_on_error
from basnet_torch.options import build, takes

if TYPE_CHECKING:
    from basnet_runtime.model import SaliencyModel
    from basnet_runtime.serve.service import Service

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
@takes(ServeConfig)
def serve(**values: Any) -> None:
    """Serve masks and cut-outs over HTTP: POST to /v1/mask, or open / in a browser."""
    with exit_on_error():
        config = build(ServeConfig, values)
        _require_packages()
        from basnet_runtime.open import open_model

        with ExitStack() as held:
            listening = held.enter_context(_listening(config.host, config.port, "--port"))
            metrics = None
            if config.metrics_port is not None:
                metrics = held.enter_context(_listening(config.host, config.metrics_port, "--metrics-port"))
            opened = held.enter_context(open_model(config.model, **config.model_options()))
            _serve(opened, config, listening, metrics)


def _require_packages() -> None:
    try:
        import fastapi
        import prometheus_client
        import python_multipart
        import uvicorn
    except ImportError as error:
        raise BackendUnavailable(
            f"basnet-serve: {error.name} is not installed. pip install 'basnet-deploy[serve]'"
        ) from error
    del fastapi, prometheus_client, python_multipart, uvicorn


def _listening(host: str, port: int, option: str) -> socket.socket:
    """A port, taken before the model is opened, so that a second server fails at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # from now on callers wait for the start instead of being refused
    except OSError as error:
        listening.close()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"address: {host}:{port}, {reason}. Give another --host or {option}") from error
    return listening


def _serve(model: SaliencyModel, config: ServeConfig, listening: socket.socket, metrics: socket.socket | None) -> None:
    import numpy as np
    import uvicorn

    from basnet_runtime.serve.app import create_app

    application = create_app(model, config)
    service: Service = application.state.service
    model.mask(np.zeros((*model.plain_size, 3), np.uint8))  # so that the first caller does not pay for it
    server = _Server(
        uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(config.grace)),
        ),
        service,
    )
    if metrics is not None:
        from prometheus_client import start_http_server

        port = metrics.getsockname()[1]
        metrics.close()  # the library takes a port, and no socket
        try:
            start_http_server(port, config.host, service.metrics.registry)
        except OSError as error:  # taken in this very moment
            raise UsageError(f"address: {config.host}:{port}, {error.strerror}. Give another --metrics-port") from error
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"serving {model.name} ({model.backend.description}) on http://{shown}:{port}")
    if not config.is_local and config.token is None:
        say("warning: no token: whoever reaches this port can use it. Give --token-file, or listen on 127.0.0.1")
    try:
        server.run([listening])
    finally:
        service.close()
        listening.close()
    say("stopped")


class _Server:
    """Uvicorn with its own way to stop: not ready at once, then no new connections, then the end."""

    def __init__(self, config: Any, service: Service) -> None:
        import uvicorn

        self._service = service
        self._server = uvicorn.Server(config)
        self._server.capture_signals = self._signals  # type: ignore[method-assign]  # its own raises them again at the end

    def run(self, sockets: list[socket.socket]) -> None:
        asyncio.run(self._server.serve(sockets))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, loop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                with suppress(ValueError):
                    loop.remove_signal_handler(number)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._service.is_draining:
            self._server.should_exit = self._server.force_exit = True  # asked twice
            return
        self._service.is_draining = True
        loop.call_later(self._service.config.drain, self._no_more)

    def _no_more(self) -> None:
        self._server.should_exit = True


def main() -> None:
    """Run the command."""
    app()
