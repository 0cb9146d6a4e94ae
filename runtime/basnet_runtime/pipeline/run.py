"""One run from source to sink: a reader thread, the network in the calling thread, a writer thread.

    report = Pipeline(model, Composer(kind), batch=4).run(source, sink)

Both queues are bounded, in items and in bytes. An error in any thread ends the run and reaches the caller; every wait
ends when the run does, so nothing hangs and Ctrl-C works at any moment.

With `on_failure` an error between the queues fails only the picture that met it. Whether every other picture would meet
it too is not guessed from the error: a plain gray picture takes the same steps, and the run ends where that one fails.

Legend: N frames of a batch, H height, W width, C channels.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import Ticket
from basnet_runtime.frame import Composed, Frame
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.timing import StageClock
from basnet_runtime.postprocess import Finisher, Finishing
from basnet_torch.errors import BackendUnavailable, BasnetError, UsageError
from basnet_torch.unexpected import unexpected

__all__ = ["Channel", "Pipeline", "Room", "RunReport", "Sink", "Source", "Stopped"]

T = TypeVar("T")
_QUEUE_FRAMES = 8
_QUEUE_BYTES = 256_000_000
_JOIN_SECONDS = 60.0


class Stopped(BaseException):
    """Raised out of a wait when the run has ended; no `Exception`, or a handler would take it for an input's defect."""


class Room:
    """Memory for frames on their way: the reader waits here before it decodes, the writer frees."""

    def __init__(self, limit_bytes: int = _QUEUE_BYTES, on_wait: Callable[[], None] | None = None) -> None:
        """`on_wait`: called before waiting, so that frames held back for a full batch are run and freed."""
        self._limit = limit_bytes
        self._on_wait = on_wait
        self._used = 0
        self._stopped = False
        self._changed = threading.Condition()

    def wait(self, nbytes: int) -> None:
        """Wait until `nbytes` fit; more than the limit fits when nothing else is there.

        Raises:
            Stopped: The run has ended.
        """
        if self._on_wait is not None and not self._fits(nbytes):
            self._on_wait()
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._fits(nbytes))
            if self._stopped:
                raise Stopped

    def _fits(self, nbytes: int) -> bool:
        return self._used == 0 or self._used + nbytes <= self._limit

    @property
    def used(self) -> int:
        """Bytes of the frames on their way."""
        return self._used

    def take(self, nbytes: int) -> None:
        """Count a decoded frame (negative: a frame that is gone)."""
        with self._changed:
            self._used += nbytes
            self._changed.notify_all()

    def stop(self) -> None:
        """End every wait."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Channel(Generic[T]):
    """A bounded queue with an end and an emergency stop."""

    def __init__(self, capacity: int) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._closed = False
        self._stopped = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Add an item, waiting for a free place.

        Raises:
            Stopped: The run has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._capacity)
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that no item follows."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End every wait at once."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def has_items(self) -> bool:
        """Whether an item is there already; None, which asks for what is held back, is not one."""
        with self._changed:
            return any(item is not None for item in self._items)

    def __iter__(self) -> Iterator[T]:
        """Items until the end.

        Raises:
            Stopped: The run has ended.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._closed or bool(self._items))
                if self._stopped:
                    raise Stopped
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class Source(Protocol):
    """Where frames come from. `frames` runs in the reader thread, `close` in the calling thread."""

    def frames(self, room: Room, clock: StageClock) -> Iterator[Frame]:
        """Upright frames in order; asks `room` for memory before it decodes, counts its time as `decode`."""

    def close(self) -> None:
        """Give files back; a second call does nothing."""


class Sink(Protocol):
    """Where results go. `write` and `finish` run in the writer thread, `abort` in the calling thread."""

    def write(self, item: Composed, clock: StageClock) -> None:
        """Store one result."""

    def finish(self, clock: StageClock) -> None:
        """Make everything final, after the last result."""

    def abort(self) -> None:
        """Leave nothing unfinished behind; called when the run failed, and harmless after `finish`."""

    def interrupt(self) -> None:
        """Keep what is whole of what was written; called before `abort` on Ctrl-C."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What one run did.

    Attributes:
        frames: Results written.
        seconds: From start to end, on the clock.
        clock: Where the time went.
    """

    frames: int
    seconds: float
    clock: StageClock

    @property
    def frames_per_second(self) -> float:
        """Frames by seconds."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


class Pipeline:
    """Runs sources through one model and one composer."""

    def __init__(
        self,
        model: SaliencyModel,
        composer: Composer,
        *,
        batch: int = 1,
        on_frame: Callable[[Composed], None] | None = None,
        finishing: Finishing | None = None,
        stream: bool = False,
        memory: dict[str, NDArray[Any]] | None = None,
        remember: int = 0,
        on_failure: Callable[[Frame, Exception], None] | None = None,
        overlap: bool = True,
    ) -> None:
        """Get ready.

        Args:
            model: What finds the masks.
            composer: What is made of them.
            batch: Pictures per network run.
            on_frame: Called in the writer thread after each result.
            finishing: What is done to the maps.
            stream: Whether each source is one video, whose frames come in order.
            memory: Of an earlier run over the frames before, see `Finisher.memory`.
            remember: Every so many frames the memory goes along with the result; 0 for never.
            on_failure: Receives a frame that could not be computed, and why; None ends the run with that error.
            overlap: Whether batches may run beside each other; a lone picture need not wait for that to be set up.
        """
        self._model = model
        self._composer = composer
        self._batch = batch
        self._on_frame = on_frame
        self._finishing = finishing
        self._stream = stream
        self._memory = memory or {}
        self._remember = remember
        self._on_failure = on_failure
        self._overlap = overlap
        self._warm = False

    def run(self, source: Source, sink: Sink, clock: StageClock | None = None) -> RunReport:
        """Take every frame of the source to the sink.

        Raises:
            BaseException: Whatever a thread or the network raised; the sink has then been aborted.
        """
        return _Run(self, source, sink, clock or StageClock()).execute()

    def maps(
        self, frames: Iterable[Frame | None], clock: StageClock, lost: Callable[[Frame, Exception], None] | None = None
    ) -> Iterator[tuple[Frame, NDArray[Any]]]:
        """Frames with their raw maps, in order.

        Where the backend can, the next batches are prepared and started while one runs; but what is in flight is waited
        for when no frame is waiting, so that a slow source, or one that waits for memory, gets its results.

        Args:
            frames: Decoded frames; None ends a batch early.
            clock: Counts the time.
            lost: Receives a frame that could not be computed, and why; None raises the error.
        """
        flying: deque[tuple[list[Frame], Ticket]] = deque()
        for group in self.batches(frames):
            flying.append((group, self._started(group, clock, lost)))
            while flying and (len(flying) >= self._model.depth or not _has_more(frames)):
                yield from self._landed(*flying.popleft(), clock, lost)
        while flying:
            yield from self._landed(*flying.popleft(), clock, lost)

    def _started(self, frames: list[Frame], clock: StageClock, lost: Callable[..., None] | None) -> Ticket:
        try:
            with clock.stage("prepare"):
                prepared = [self._model.prepare(frame.flattened()) for frame in frames]
            with clock.stage("network"):
                if self._warm:
                    return self._model.submit(prepared, overlap=self._overlap)
                self._warm = True
                with clock.adopt("network"):  # some libraries start their threads at the first run
                    return self._model.submit(prepared, overlap=self._overlap)
        except Exception as error:
            if lost is None:
                raise
            return _Refused(error)

    def _landed(
        self, frames: list[Frame], ticket: Ticket, clock: StageClock, lost: Callable[..., None] | None
    ) -> Iterator[tuple[Frame, NDArray[Any]]]:
        try:
            with clock.stage("network"):
                raw = ticket.result()
        except Exception as error:
            if lost is None:
                raise
            return self._one_by_one(frames, error, clock, lost)
        return zip(frames, raw, strict=True)

    def _one_by_one(
        self, frames: list[Frame], error: Exception, clock: StageClock, lost: Callable[..., None]
    ) -> Iterator[tuple[Frame, NDArray[Any]]]:
        """Compute what can be computed of a batch that failed."""
        self.raise_where_all_fail(error)
        if len(frames) == 1:
            lost(frames[0], error)
            return
        for frame in frames:
            yield from self._landed([frame], self._started([frame], clock, lost), clock, lost)

    def batches(self, frames: Iterable[Frame | None]) -> Iterator[list[Frame]]:
        """Frames in groups; None ends a group early, and for a graph that takes whole frames so does a new size."""
        group: list[Frame] = []
        for frame in frames:
            if group and (frame is None or self._must_part(group[0], frame)):
                yield group
                group = []
            if frame is not None:
                group.append(frame)
            if len(group) == self._batch:
                yield group
                group = []
        if group:
            yield group

    def _must_part(self, first: Frame, frame: Frame) -> bool:
        return self._model.takes_frames and first.image_HWC.shape != frame.image_HWC.shape

    def results(
        self, frames: Iterable[Frame | None], clock: StageClock, lost: Callable[[Frame, Exception], None] | None = None
    ) -> Iterator[Composed]:
        """Everything between the two queues; `lost` as of `maps`."""
        finisher = Finisher(self._model, self._finishing, stream=self._stream)
        finisher.recall(self._memory)
        for frame, raw_map in self.maps(frames, clock, lost):
            try:
                with clock.stage("finish"):
                    mask_HW, decision = finisher(frame, raw_map)
                with clock.stage("compose"):
                    composed = self._composer(frame, mask_HW, decision)
            except Exception as error:
                if lost is None:
                    raise
                self.raise_where_all_fail(error)
                lost(frame, error)
                continue
            if self._remember and (frame.index + 1) % self._remember == 0:
                composed = replace(composed, memory=finisher.memory)
            yield composed

    def raise_where_all_fail(self, error: Exception) -> None:
        """Take a plain gray picture through the steps in which another one has failed.

        Raises:
            BasnetError: It fails too, so that every picture would: `error` where that is a line for the user already.
        """
        if isinstance(error, UsageError):
            raise error
        model = self._model
        kind: type[BasnetError] = BackendUnavailable
        frame = Frame(image_HWC=np.full((*model.plain_size, 3), 128, np.uint8))
        try:
            raw = model.infer([model.prepare(frame.image_HWC)])[0]
            kind = BasnetError
            self._composer(frame, *Finisher(model, self._finishing)(frame, raw))
        except Exception:  # noqa: BLE001 - the first error is the one to tell
            if isinstance(error, BasnetError):
                raise error from None
            what = f"{model.name}, {model.backend.description}: every picture fails"
            raise kind(unexpected(what, error)) from error

    def wrote(self, item: Composed) -> None:
        """Tell whoever watches."""
        if self._on_frame is not None:
            self._on_frame(item)

    @property
    def on_failure(self) -> Callable[[Frame, Exception], None] | None:
        """Receives a frame that could not be computed; None ends the run instead."""
        return self._on_failure


class _Refused:
    """The ticket of a batch that could not be started."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def done(self) -> bool:
        return True

    def result(self) -> NDArray[Any]:
        raise self._error


def _has_more(frames: Iterable[Frame | None]) -> bool:
    return frames.has_items() if isinstance(frames, Channel) else True


class _Run:
    """The state of one `Pipeline.run`."""

    def __init__(self, pipeline: Pipeline, source: Source, sink: Sink, clock: StageClock) -> None:
        self._pipeline = pipeline
        self._source = source
        self._sink = sink
        self._clock = clock
        self._decoded: Channel[Frame | None] = Channel(_QUEUE_FRAMES)
        self._room = Room(_QUEUE_BYTES, on_wait=lambda: self._decoded.put(None))
        self._composed: Channel[Composed] = Channel(_QUEUE_FRAMES)
        self._error: BaseException | None = None
        self._written = 0

    def execute(self) -> RunReport:
        start = time.perf_counter()
        self._clock.start()
        workers = [self._thread(self._read), self._thread(self._write)]
        try:
            for worker in workers:
                worker.start()
            self._infer()
            self._wait(workers)
            if self._error is not None:
                raise self._error
        except BaseException as error:
            try:  # a second Ctrl-C may come while waiting: what is unfinished is removed all the same
                self._stop()
                self._wait(workers, _JOIN_SECONDS)
                if isinstance(error, KeyboardInterrupt) and not any(worker.is_alive() for worker in workers):
                    self._sink.interrupt()
            finally:
                self._sink.abort()
            raise
        finally:
            self._source.close()
        self._clock.collect("network")
        self._clock.share_pictures()
        return RunReport(frames=self._written, seconds=time.perf_counter() - start, clock=self._clock)

    def _infer(self) -> None:
        on_failure = self._pipeline.on_failure

        def lost(frame: Frame, error: Exception) -> None:
            if on_failure is not None:
                on_failure(frame, error)
            self._room.take(-frame.nbytes)

        try:
            for item in self._pipeline.results(self._decoded, self._clock, None if on_failure is None else lost):
                self._composed.put(item)
        except Stopped:
            return  # a worker failed; its error is raised after both have ended
        self._composed.close()

    def _read(self) -> None:
        for frame in self._source.frames(self._room, self._clock):
            self._room.take(frame.nbytes)
            self._decoded.put(frame)
        self._decoded.close()

    def _write(self) -> None:
        for item in self._composed:
            with self._clock.stage("encode"):
                self._sink.write(item, self._clock)
            self._written += 1
            self._pipeline.wrote(item)
            self._room.take(-item.frame.nbytes)
        with self._clock.stage("encode"):
            self._sink.finish(self._clock)

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - it is raised again in the calling thread
                self._error = self._error or error
                self._stop()

        return threading.Thread(target=guarded, daemon=True, name=work.__name__.strip("_"))

    def _stop(self) -> None:
        for part in (self._room, self._decoded, self._composed):
            part.stop()

    @staticmethod
    def _wait(workers: list[threading.Thread], seconds: float | None = None) -> None:
        for worker in workers:
            if worker.is_alive():
                worker.join(seconds)
