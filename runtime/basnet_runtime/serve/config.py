"""Server configuration: every option of `basnet-serve`, checked before opening."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from basnet_runtime.model_options import ModelOptions
from basnet_torch.errors import UsageError
from basnet_torch.options import check, option

__all__ = ["ServeConfig"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ABOVE_0 = ("above 0 seconds", lambda seconds: seconds > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig(ModelOptions):
    """What to serve, and the bounds of the server; each field's help says what it is."""

    host: str = field(default="127.0.0.1", metadata=option("Address to listen on."))
    port: int = field(default=8000, metadata=option("TCP port; 0 takes a free one.", min=0, max=65_535))
    metrics_port: int | None = field(
        default=None, metadata=option("Port of /metrics alone. Default: on --port.", min=0, max=65_535)
    )
    queue: int = field(default=32, metadata=option("Pictures that may wait; more are answered 429.", min=1))
    batch: int | None = field(
        default=None, metadata=option("Pictures per network run. Default: 1 on a CPU, 8 on a GPU.", min=1)
    )
    batch_wait: float | None = field(
        default=None,
        metadata=option("Longest wait for a fuller batch, seconds. Default: 0 on a CPU, 0.002 on a GPU.", min=0),
    )
    max_bytes: int = field(default=32 << 20, metadata=option("Largest body, bytes.", min=1))
    max_pixels: int = field(default=50_000_000, metadata=option("Largest picture, pixels.", min=1))
    body_seconds: float = field(default=10.0, metadata=option("Time limit for sending a body, seconds.", must=_ABOVE_0))
    wait_seconds: float = field(default=30.0, metadata=option("Time limit for waiting, seconds.", must=_ABOVE_0))
    grace: float = field(default=30.0, metadata=option("Time limit for open requests at SIGTERM, seconds.", min=0))
    drain: float = field(
        default=0.0, metadata=option("Time from reporting not ready to closing the port, seconds.", min=0)
    )
    token_file: Path | None = field(
        default=None, metadata=option("File with the bearer token that every route but health and the page wants.")
    )
    log_clients: bool = field(default=False, metadata=option("Callers' addresses in the log.", "--log-clients"))
    token: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check(self)
        if self.token_file is not None:
            object.__setattr__(self, "token", _token(self.token_file))

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can call."""
        return self.host in _LOOPBACK

    @property
    def pictures_a_batch(self) -> int:
        """Return `batch`, or what suits the device: pictures in parallel on a CPU."""
        return self.batch or (1 if self.device.on_cpu else 8)

    @property
    def batch_seconds(self) -> float:
        """`batch_wait`, or what suits the device."""
        return self.batch_wait if self.batch_wait is not None else (0.0 if self.device.on_cpu else 0.002)


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"token file: {path}, cannot be read ({type(error).__name__}). Give a text file") from error
    if not token or not token.isascii() or len(token.split()) != 1:
        raise UsageError(f"token file: {path}, must hold one ASCII word. Write one with: openssl rand -hex 32")
    return token
