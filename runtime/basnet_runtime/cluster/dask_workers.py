"""Dask distributed as the engine of `dispatch`: the only module that imports it.

    with DaskWorkers("local", slots=[{}, {}], greet=greet, accept=accept, work=work) as engine:
        for items, answer in dispatch(take, engine): ...

A worker gets work once its versions fit, it has answered `greet` and `accept` has taken the answer; late ones too.
While no worker is joining, chunks are submitted without `workers=` or `resources=`: Dask would charge a death to all
that it had assigned to that worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from basnet_runtime.cluster.dispatch import GOES_ON, WorkerDied
from basnet_runtime.cluster.facts import Refused, differences, own_versions
from basnet_torch.errors import BackendUnavailable, BasnetError, UsageError
from basnet_torch.files import RUN, Closing

__all__ = ["DaskWorkers", "check_address", "start_local"]

_CONNECT_SECONDS = 15
_FILE_SECONDS = 1.0  # in which a scheduler writes its file
_ANSWER_SECONDS = 30  # of a scheduler that is there
_MEET_SECONDS = 30.0  # in which a worker says its versions
_OPEN_SECONDS = 900.0  # in which it opens its model; TensorRT builds an engine meanwhile
_LOOK_SECONDS = 1.0
_STOP_SECONDS = 3.0
_RESTART_SECONDS = 4.0
_LOOPBACK = "127.0.0.1"
# Of the cluster that is started here, where the user's own configuration of Dask does not say otherwise.
_DEFAULTS = {
    "distributed": {
        # What Dask counts for its web pages took a third of the CPU time of small pictures.
        "admin": {"tick": {"interval": "200ms"}, "system-monitor": {"interval": "5s"}},
        # Any value of it has glibc ask the system for each large array anew: a tenth of the CPU time.
        "nanny": {"pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": None}},
        "scheduler": {"worker-ttl": "60s", "allowed-failures": 0},
        "worker": {
            "profile": {"enabled": False},
            "multiprocessing-method": "forkserver",
            "memory": {"target": False, "spill": False, "pause": False, "terminate": False},
        },
    }
}


def check_address(where: str) -> None:
    """Refuse what is no place of a cluster.

    Raises:
        UsageError: It is not `local`, an address or a scheduler file.
        BackendUnavailable: The scheduler file is not there, or is none.
    """
    if where == "local" or (where.startswith(("tcp://", "tls://")) and _has_port(where)):
        return
    if not where.endswith(".json"):
        raise UsageError(f"cluster is {where!r}; it must be local, tcp://HOST:PORT, tls://HOST:PORT or SCHEDULER.json")
    if not Path(where).is_file():
        raise BackendUnavailable(f"{where}: no such scheduler file; start one with 'dask scheduler --scheduler-file'")
    until = time.monotonic() + _FILE_SECONDS
    while _address_of(where) is None:
        if time.monotonic() > until:
            raise BackendUnavailable(
                f"{where}: no scheduler file, it holds no address; start one with 'dask scheduler --scheduler-file'"
            )
        time.sleep(0.1)


def _has_port(address: str) -> bool:
    """Whether this is a scheduler's address, whole."""
    try:
        parts = urlsplit(address)
        return bool(parts.scheme and parts.hostname and parts.port)
    except ValueError:  # the port is no number, or too large
        return False


def _address_of(where: str) -> str | None:
    """The scheduler's address; None of a file that holds none, or not yet."""
    if not where.endswith(".json"):
        return where
    try:
        known = json.loads(Path(where).read_text())
    except (OSError, ValueError):
        return None
    address = known.get("address") if isinstance(known, dict) else None
    return address if isinstance(address, str) and _has_port(address) else None


def _check_tls(address: str) -> None:
    """Refuse a `tls://` address for which this machine has no keys."""
    from distributed.security import Security

    if address.startswith("tls://") and Security().get_connection_args("client")["ssl_context"] is None:
        raise BackendUnavailable(
            f"{address}: Dask's configuration has no keys for TLS; set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
            "..__TLS__CLIENT__CERT and ..__TLS__CLIENT__KEY"
        )


class DaskWorkers(Closing):
    """Workers of a Dask cluster, started here or elsewhere."""

    def __init__(
        self,
        where: str,
        *,
        slots: Sequence[Mapping[str, str]],
        greet: Callable[[], Any],
        accept: Callable[[Any], None],
        work: Callable[[], Callable[[tuple[Any, ...]], Any]],
        stop: Callable[[], None],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connect, or start a cluster.

        Args:
            where: `local`, the scheduler's address, or its file.
            slots: Environment of each worker that `local` starts.
            greet: What a worker answers before it gets work; as everything that is sent, of an installed module.
            accept: Called with that answer; raises to end the run.
            work: Gives what runs items on a worker.
            stop: Called on workers when the run is interrupted.
            tell: Told of workers that are there and do not answer.

        Raises:
            BackendUnavailable: Dask is not installed, or there is no cluster.
        """
        try:
            import distributed
        except ImportError as error:
            raise BackendUnavailable(
                f"--cluster needs Dask distributed ({error}); pip install 'basnet-deploy[cluster]'"
            ) from error
        self._greet, self._accept, self._work, self._stop = greet, accept, work, stop
        self._tell = tell
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._asked: dict[str, Any] = {}  # greetings by address; None while a worker says its versions
        self._since: dict[str, float] = {}  # when the answer that is waited for was first asked for
        self._silent: set[str] = set()
        self._ready: set[str] = set()
        self._running: dict[str, tuple[int, Any]] = {}
        self._looked = 0.0
        self._cluster: Any = None
        for name in ("distributed", "tornado.application", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # a lost scheduler is reported in one line, not 36
        # Kept while it connects: one that could not would wait for half a minute when it is forgotten.
        self._client: Any = distributed.Client.__new__(distributed.Client)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other versions are refused by facts, not by a warning
                if where == "local":
                    self._cluster = start_local(slots)
                else:
                    _check_tls(_address_of(where) or "")
                self._client.__init__(
                    self._cluster or _address_of(where), timeout=_CONNECT_SECONDS, set_as_default=False
                )
        except BackendUnavailable:
            raise
        except Exception as error:
            self._client.status = "closed"
            self._close_cluster()
            line = " ".join(str(error).split())[:200] or type(error).__name__
            raise BackendUnavailable(
                f"{where}: no cluster there ({line}); start a scheduler, or name its address"
            ) from error
        except BaseException:
            self._client.status = "closed"
            self._close_cluster()
            raise

    @property
    def scheduler(self) -> str:
        """The scheduler's address."""
        return str(self._client.scheduler.address)

    def ready(self) -> int:
        """How many workers have been accepted and are there."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._look()
        return len(self._ready)

    def awaited(self) -> bool:
        """Whether some worker is there that may still answer."""
        now = time.monotonic()
        return any(
            now - self._since[address] < (_MEET_SECONDS if greeting is None else _OPEN_SECONDS)
            for address, greeting in self._asked.items()
            if address not in self._ready
        )

    def _look(self) -> None:
        """Ask those who are new, forget those who have gone."""
        try:
            there = set(self._client.sync(self._client.scheduler.ncores, callback_timeout=_ANSWER_SECONDS))
        except Exception as error:
            raise self._lost() from error
        self._ready &= there
        for address in self._since.keys() - there:
            del self._since[address]
            if (greeting := self._asked.pop(address, None)) is not None:
                greeting.cancel()
        self._looked = time.monotonic()
        for address in sorted(there - self._asked.keys()):
            self._asked[address] = None
            self._since.setdefault(address, self._looked)
            self._client.loop.add_callback(self._meet, address)

    async def _meet(self, address: str) -> None:
        """Ask a new worker for its versions before it gets a task: one it cannot load would end it.

        Each by itself: one that hangs holds up nobody else.
        """
        try:
            asked = self._client.run(own_versions, workers=[address], on_error="return")
            answers = await asyncio.wait_for(asked, _MEET_SECONDS)
            self._answers.put((address, answers[address]))
        except Exception as error:  # noqa: BLE001 - it is sorted where it is taken
            self._answers.put((address, error))

    def _lost(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self.scheduler}: the scheduler is lost; {GOES_ON}")

    def start(self, number: int, items: tuple[Any, ...]) -> None:
        """Submit a piece; its key is used once, since Dask takes equal keys for one task."""
        key = f"basnet-{RUN}-{number}"
        joining = self._asked.keys() - self._ready  # one of them may hang
        place = {"workers": sorted(self._ready), "allow_other_workers": True} if joining else {}
        self._running[key] = number, self._submitted(self._work(), items, key=key, **place)

    def _submitted(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        future = self._client.submit(function, *arguments, pure=False, retries=0, **options)
        future.add_done_callback(self._answers.put)
        return future

    def wait(self, seconds: float) -> Iterable[tuple[int, Any]]:
        """Answers that have come; waits until there is one, or so long."""
        found: list[tuple[int, Any]] = []
        with suppress(Empty):
            self._take(self._answers.get(timeout=seconds), found)
            while True:
                self._take(self._answers.get_nowait(), found)
        return found

    def _take(self, came: Any, found: list[tuple[int, Any]]) -> None:
        """Sort what came: the versions of a worker, its greeting, or the answer of a piece."""
        if isinstance(came, tuple):
            address, versions = came
            if self._asked.get(address, self) is not None:
                return  # it has gone meanwhile
            if isinstance(versions, OSError):  # it died, hangs or cannot be reached: asked again while it is there
                del self._asked[address]
                if address not in self._silent:
                    self._silent.add(address)
                    line = " ".join(str(versions).split())[:200] or f"none in {_MEET_SECONDS:.0f} s"
                    self._tell(f"node {address}: gives no answer ({line}); it gets no work until it does")
                return
            if isinstance(versions, Exception):
                self._refuse(address, versions)
            differences(versions, own_versions(), like=())
            key = f"greet-{RUN}-{address}"
            self._asked[address] = self._submitted(self._greet, key=key, workers=[address], allow_other_workers=False)
            self._since[address] = time.monotonic()
            return
        if came.key in self._running:
            number, future = self._running.pop(came.key)
            found.append((number, self._answer(future)))
        for address in [
            address for address, asked in self._asked.items() if asked is not None and asked.key == came.key
        ]:
            answer = self._answer(came)
            if isinstance(answer, WorkerDied):
                continue
            if isinstance(answer, Exception):
                self._refuse(address, answer)
            self._accept(answer)
            self._ready.add(address)

    @staticmethod
    def _refuse(address: str, error: Exception) -> None:
        line = " ".join(str(error).split())[:200]
        raise Refused(f"node {address}: cannot work ({line}); install the same product there") from error

    def _answer(self, future: Any) -> Any:
        from distributed.scheduler import KilledWorker

        if future.cancelled() or future.status == "lost" or self._client.status != "running":
            raise self._lost()
        if future.status == "finished":
            try:
                return future.result(timeout=_ANSWER_SECONDS)
            except Exception:  # noqa: BLE001 - its worker died before the answer was fetched
                return WorkerDied(1)
        error = future.exception(timeout=_ANSWER_SECONDS)
        if isinstance(error, KilledWorker):
            return WorkerDied(int(error.allowed_failures) + 1)
        if isinstance(error, BasnetError):
            raise error
        return error

    def interrupt(self) -> list[tuple[int, Any]]:
        """Stop what runs, and return its answers; nothing is written any more then."""
        found: list[tuple[int, Any]] = []
        self._client.loop.add_callback(self._say_stop)
        with suppress(Exception):
            until = time.monotonic() + _STOP_SECONDS
            while self._running and (left := until - time.monotonic()) > 0:
                found += self.wait(left)
            if self._running and self._cluster is None:
                held = self._client.processing().items()
                busy = [address for address, keys in held if self._running.keys() & set(keys)]
                self._client.cancel([future for _, future in self._running.values()], force=True)
                self._client.restart_workers(busy, timeout=_RESTART_SECONDS, raise_for_error=False)
        return found

    async def _say_stop(self) -> None:
        """Tell all workers to stop; not waited for: one that hangs would hold up Ctrl-C as well."""
        with suppress(Exception):
            await self._client.run(self._stop, workers=list(self._ready), on_error="ignore")

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        with suppress(Exception):
            self._client.close(timeout=2)
        self._close_cluster()

    def _close_cluster(self) -> None:
        if self._cluster is not None:
            with suppress(Exception):
                self._cluster.close(timeout=5)


def start_local(slots: Sequence[Mapping[str, str]]) -> Any:
    """Start a scheduler and a nanny for each slot, reachable from this machine alone.

    Args:
        slots: Environment of each worker.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    dask.config.update_defaults(_DEFAULTS)
    quiet = {"silence_logs": logging.CRITICAL}
    worker = {"host": _LOOPBACK, "nthreads": 1, "memory_limit": None, "dashboard": False, **quiet}
    worker["dashboard_address"] = f"{_LOOPBACK}:0"
    # Ctrl-C is the driver's alone: what is started here, also after a death, inherits that it is blocked.
    resource_tracker.ensure_running()  # which would unblock it in the thread that starts the first worker
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": {"host": _LOOPBACK, "port": 0, "dashboard": False, "dashboard_address": f"{_LOOPBACK}:0"},
            },
            workers={
                number: {"cls": Nanny, "options": {**worker, "env": dict(slot)}} for number, slot in enumerate(slots)
            },
            **quiet,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
