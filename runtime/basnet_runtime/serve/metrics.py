"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STATM = Path("/proc/self/statm")
_RATE_MEMORY = 0.9  # share of the old average that each finished picture leaves


class Metrics:
    """What the server counts; `text` is what `/metrics` answers."""

    def __init__(self, description: str, model: str) -> None:
        """`description` and `model` become the labels of `basnet_model_info`."""
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "basnet_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.refused = Counter("basnet_refused", "Requests refused, by reason", ["reason"], registry=registry)
        self.stages = Histogram(
            "basnet_stage_seconds", "Seconds by stage", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.waiting = Gauge("basnet_pictures_waiting", "Pictures that wait for their turn", registry=registry)
        self.in_flight = Gauge("basnet_pictures_in_flight", "Pictures being worked on", registry=registry)
        self.batches = Histogram(
            "basnet_batch_size", "Pictures per network run", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        resident = Gauge("basnet_resident_bytes", "Resident memory of the server", registry=registry)
        resident.set_function(resident_bytes)
        Info("basnet_model", "What runs", registry=registry).info({"model": model, "description": description})
        self._seconds_each = 0.0
        self._last: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of one picture."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(time.perf_counter() - began)

    def on_batch(self, size: int, seconds: float) -> None:
        """Count a finished batch; called by the batcher's thread."""
        self.batches.observe(size)
        self.stages.labels("network").observe(seconds)

    def finished(self) -> None:
        """Note that a picture is done, for the measured rate."""
        now = time.monotonic()
        if self._last is not None:
            each = min(now - self._last, _SECONDS[-1])
            self._seconds_each = (
                each if not self._seconds_each else (_RATE_MEMORY * self._seconds_each + (1 - _RATE_MEMORY) * each)
            )
        self._last = now

    def retry_after(self, waiting: int) -> int:
        """Seconds until `waiting` pictures are done at the measured rate, 1 to 60."""
        return min(60, max(1, round(waiting * self._seconds_each + 0.5)))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


def resident_bytes() -> float:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    import resource

    return float(pages * resource.getpagesize())
