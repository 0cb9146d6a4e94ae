"""The service behind the routes: bounded admission, then steps of `basnet-run`.

Compressed pictures wait, decoded ones do not: what is decoded at once is bounded by the model's depth.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.frame import Frame
from basnet_runtime.kinds import OutputKind, PictureFormat
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.image.metadata import surviving
from basnet_runtime.media.image.pictures import PictureFile, encode_picture
from basnet_runtime.salience import SalienceDecision
from basnet_runtime.serve.batcher import Batcher
from basnet_runtime.serve.body import BodyLimits, PictureBytes
from basnet_runtime.serve.config import ServeConfig
from basnet_runtime.serve.metrics import Metrics
from basnet_runtime.serve.problems import CLIENT_CLOSED, Problem
from basnet_torch.errors import BasnetError, MediaError, ModelFileError, UsageError
from basnet_torch.files import Closing
from basnet_torch.unexpected import unexpected

if TYPE_CHECKING:
    from basnet_runtime.model import SaliencyModel

__all__ = ["Answer", "PictureTask", "Service", "defect"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureTask:
    """What to make of one picture; as the options of `basnet-run`."""

    kind: OutputKind
    format: PictureFormat = "png"
    threshold: float | None = None
    feather: float = 0.0
    refine_edges: bool = False
    empty_weak: bool = False
    page: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One result: the encoded picture, the decision, and how large the picture was."""

    data: bytes
    decision: SalienceDecision
    height: int
    width: int
    wait_seconds: float
    network_seconds: float


class _Caller:
    """Who waits for the work of a thread; what the network has not begun when nobody does any more is not computed."""

    def __init__(self) -> None:
        self._futures: list[Future[NDArray[Any]]] = []
        self._has_left = False

    def waits_for(self, futures: Iterable[Future[NDArray[Any]]]) -> list[Future[NDArray[Any]]]:
        """Cancel these when the caller leaves; none is made where it has left already."""
        self._check()
        self._futures = list(futures)
        self._check()
        return self._futures

    def leave(self) -> None:
        """Note that nobody waits."""
        self._has_left = True
        for future in self._futures:
            future.cancel()

    def _check(self) -> None:
        if self._has_left:
            self.leave()
            raise Problem(CLIENT_CLOSED, "the caller left", reason="left")


class Service(Closing):
    """One model and its bounds; everything but HTTP."""

    def __init__(self, model: SaliencyModel, config: ServeConfig) -> None:
        self.model = model
        self.config = config
        self.metrics = Metrics(model.backend.description, model.name)
        self._batcher = Batcher(
            model,
            batch=config.pictures_a_batch,
            wait_seconds=config.batch_seconds,
            on_batch=self.metrics.on_batch,
            is_busy=lambda: self._working > 1,
        )
        at_once = model.depth * config.pictures_a_batch + 1
        self._turns = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="picture")
        self._waiting = self._working = 0
        self.bodies = BodyLimits(
            each=config.max_bytes,
            together=config.max_bytes * config.queue,
            seconds=config.body_seconds,
            busy=self._busy,
            timed=partial(self.metrics.stage, "read"),
        )
        self.is_draining = False

    def close(self) -> None:
        """Finish what runs; the model stays open."""
        self._threads.shutdown()
        self._batcher.close()

    async def run(self, image: PictureBytes, task: PictureTask, background: PictureBytes | None = None) -> Answer:
        """One picture from its file's bytes to its result's.

        Raises:
            Problem: 422 for the picture or options, 429 or 503 for the load, 500 for the model or a defect.
        """
        asked = time.perf_counter()
        behind = None if background is None else background.path
        async with self.turn():
            waited = time.perf_counter() - asked
            return await self._in_thread(lambda caller: self._answer(image.path, task, behind, waited, caller))

    async def tensors(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Run a batch of the network's input, N first, through the queue; raw maps.

        Raises:
            Problem: 429, 500 or 503.
        """
        async with self.turn():
            return await self._in_thread(lambda caller: np.stack(self._network(list(batch), caller)))

    def check_ready(self) -> None:
        """Say whether requests are taken.

        Raises:
            Problem: 503 while the server is stopping.
        """
        if self.is_draining:
            raise Problem(503, "ready: no, the server is stopping", reason="draining")

    async def frames(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Return masks uint8 N,H,W of pictures uint8 N,H,W,3, as `basnet-run` does.

        Raises:
            Problem: As of `run`.
        """

        def mask(image_HWC: NDArray[Any], caller: _Caller) -> NDArray[Any]:
            self.model.check_size("frame", *image_HWC.shape[:2])
            (raw,) = self._network([self.model.prepare(image_HWC)], caller)
            return self.model.postprocessor()(Frame(image_HWC=image_HWC), raw)[0]

        async with self.turn():
            return await self._in_thread(lambda caller: np.stack([mask(image_HWC, caller) for image_HWC in batch]))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place among the pictures that are worked on.

        Raises:
            Problem: 429 where too many wait, 503 where the wait was too long.
        """
        if self._waiting >= self.config.queue and self._turns.locked():
            raise self._busy(429, f"queue: {self._waiting} pictures wait, at most {self.config.queue} may", "queue")
        began = time.perf_counter()
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        try:
            async with asyncio.timeout(self.config.wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise self._busy(503, f"wait: no turn within {self.config.wait_seconds:g} s", "wait") from None
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)
        self.metrics.stages.labels("wait").observe(time.perf_counter() - began)
        self._working += 1
        self.metrics.in_flight.set(self._working)
        try:
            yield
            self.metrics.finished()
        finally:
            self._turns.release()
            self._working -= 1
            self.metrics.in_flight.set(self._working)

    def _busy(self, status: int, what: str, reason: str) -> Problem:
        """Refuse for the load, and say when to come back."""
        after = self.metrics.retry_after(self._waiting)
        return Problem(status, f"{what}. Try again in {after} s", reason=reason, headers={"Retry-After": str(after)})

    async def _in_thread(self, work: Callable[[_Caller], T]) -> T:
        """Run `work` in a thread; a caller that leaves meanwhile keeps its place until the thread is done.

        In one thread from beginning to end: each way back to the event loop costs as much as parsing the request.
        """
        caller = _Caller()
        running = asyncio.get_running_loop().run_in_executor(self._threads, work, caller)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            caller.leave()
            await asyncio.wait([running])
            running.exception()  # retrieved: nobody else will
            raise
        except (MediaError, UsageError) as error:
            raise Problem(422, _plain(str(error))) from error
        except ModelFileError as error:
            raise Problem(500, _plain(str(error))) from error
        except Problem:
            raise
        except Exception as error:  # a defect that one picture brings to light ends that picture alone
            raise defect(error) from error

    def _network(self, prepared: list[NDArray[Any]], caller: _Caller) -> list[NDArray[Any]]:
        """Raw maps of prepared pictures; waits for them."""
        try:
            return [future.result() for future in caller.waits_for(map(self._batcher.submit, prepared))]
        except BasnetError as error:
            raise Problem(500, _plain(str(error))) from error

    def _answer(self, path: Path, task: PictureTask, background: Path | None, waited: float, caller: _Caller) -> Answer:
        frame, prepared = self._decode(path, task)
        submitted = time.perf_counter()
        (raw,) = self._network([prepared], caller)
        network_seconds = time.perf_counter() - submitted
        data, decision = self._finish(frame, raw, task, background)
        height, width = frame.image_HWC.shape[:2]
        return Answer(
            data=data,
            decision=decision,
            height=height,
            width=width,
            wait_seconds=waited,
            network_seconds=network_seconds,
        )

    def _decode(self, path: Path, task: PictureTask) -> tuple[Frame, NDArray[Any]]:
        with (
            self.metrics.stage("decode"),
            PictureFile(path, max_pixels=self.config.max_pixels, page=task.page) as picture,
        ):
            frame = picture.read()
        self.model.check_size("picture", *frame.image_HWC.shape[:2])
        with self.metrics.stage("preprocess"):
            return frame, self.model.prepare(frame.flattened())

    def _finish(
        self, frame: Frame, raw: NDArray[Any], task: PictureTask, background: Path | None
    ) -> tuple[bytes, SalienceDecision]:
        with self.metrics.stage("postprocess"):
            mask, decision = self.model.postprocessor(empty_weak=task.empty_weak)(frame, raw)
        kind = task.kind if background is None else OutputKind(name="image", image=background)
        with self.metrics.stage("compose"):
            composer = Composer(kind, threshold=task.threshold, feather=task.feather, refine_edges=task.refine_edges)
            made = composer(frame, mask, decision)
        metadata = surviving(made.frame.metadata, is_mask=made.pixels.ndim == 2)
        with self.metrics.stage("encode"):
            return encode_picture(f".{task.format}", made.pixels, made.alpha_HW, metadata=metadata), decision


def _plain(text: str) -> str:
    """An error's text without the paths of this machine."""
    return re.sub(r"(/proc/self/fd/\d+|\S*/basnet-serve-\w+)", "picture", text)


def defect(error: Exception) -> Problem:
    """500 for unexpected errors: the caller gets its kind, the log the traceback."""
    note = unexpected("request", error)
    return Problem(500, f"unexpected: {type(error).__name__}. The server's log says where its traceback is", note=note)
