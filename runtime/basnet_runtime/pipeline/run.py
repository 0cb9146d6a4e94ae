"""The pipeline: reader thread, network in the calling thread, writer thread.

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
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from basnet_runtime.backends.base import FinishedInference, InferenceFuture
from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.model import SaliencyModel
from basnet_runtime.pipeline.queues import ByteBudget, ClosableQueue, Stopped
from basnet_runtime.pipeline.timing import StageClock
from basnet_runtime.postprocess import Postprocessor
from basnet_runtime.salience import SalienceDecision
from basnet_torch.arrays import UInt8
from basnet_torch.errors import BackendUnavailable, BasnetError, UsageError
from basnet_torch.unexpected import unexpected

__all__ = ["Compose", "Pipeline", "RunReport", "Sink", "Source"]

_QUEUE_FRAMES = 8
_QUEUE_BYTES = 256_000_000
_JOIN_SECONDS = 60.0
Compose = Callable[[Frame, UInt8, SalienceDecision], ResultFrame]


class Source(Protocol):
    """Source of frames; `frames` runs in the reader thread, `close` in the caller's.

    One whose library decodes in threads of its own counts their time as `codec_threads`, a `LibraryThreads`.
    """

    def frames(self, budget: ByteBudget | None = None) -> Iterator[Frame]:
        """Iterate over upright frames; each waits for memory of the `budget`, if given."""

    def close(self) -> None:
        """Give files back; a second call does nothing."""


class Sink(Protocol):
    """Sink of results; `write` and `finish` run in the writer thread, not `abort`.

    One whose library encodes in threads of its own counts their time as `codec_threads`, a `LibraryThreads`.
    """

    def write(self, item: ResultFrame) -> None:
        """Store one result."""

    def finish(self) -> None:
        """Make everything final, after the last result."""

    def abort(self) -> None:
        """Remove unfinished results; called when the run failed, harmless after `finish`."""

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
    """Runs sources through one model."""

    def __init__(
        self,
        model: SaliencyModel,
        compose: Compose,
        *,
        batch: int = 1,
        on_frame: Callable[[ResultFrame], None] | None = None,
        stabilize: bool = False,
        empty_weak: bool = False,
        stream: bool = False,
        memory: dict[str, NDArray[Any]] | None = None,
        remember: int = 0,
        on_failure: Callable[[Frame, Exception], None] | None = None,
        overlap: bool = True,
    ) -> None:
        """Get ready.

        Args:
            model: What finds the masks.
            compose: Makes the result of a frame, its mask and the decision on it, such as a `Composer`.
            batch: Pictures per network run.
            on_frame: Called in the writer thread after each result.
            stabilize: Keep the masks of a stream from flickering.
            empty_weak: Give an empty mask where nothing salient was found, instead of the map as it is.
            stream: Whether each source is one video, whose frames come in order.
            memory: Of an earlier run over the frames before, see `Postprocessor.memory`.
            remember: Every so many frames the memory goes along with the result; 0 for never.
            on_failure: Receives a frame that could not be computed, and why; None ends the run with that error.
            overlap: Whether batches may run beside each other; a lone picture need not wait for that to be set up.
        """
        self._model = model
        self._compose = compose
        self._batch = batch
        self.on_frame = on_frame
        self._stabilize = stabilize
        self._empty_weak = empty_weak
        self._stream = stream
        self._memory = memory or {}
        self._remember = remember
        self.on_failure = on_failure
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
        running: deque[tuple[list[Frame], InferenceFuture]] = deque()
        depth = self._model.depth if self._overlap else 1
        more = frames.has_items if isinstance(frames, ClosableQueue) else lambda: True
        for group in self.batches(frames):
            running.append((group, self._started(group, clock, lost)))
            while running and (len(running) >= depth or not more()):
                yield from self._finished(*running.popleft(), clock, lost)
        while running:
            yield from self._finished(*running.popleft(), clock, lost)

    def _started(self, frames: list[Frame], clock: StageClock, lost: Callable[..., None] | None) -> InferenceFuture:
        try:
            with clock.stage("preprocess"):
                prepared = [self._model.prepare(frame.flattened()) for frame in frames]
            # Some libraries start their threads at the first run.
            with clock.stage("network"), nullcontext() if self._warm else clock.network.adopt():
                self._warm = True
                return self._model.submit(prepared, overlap=self._overlap)
        except Exception as error:
            if lost is None:
                raise
            return FinishedInference(error=error)

    def _finished(
        self, frames: list[Frame], future: InferenceFuture, clock: StageClock, lost: Callable[..., None] | None
    ) -> Iterator[tuple[Frame, NDArray[Any]]]:
        try:
            with clock.stage("network"):
                raw = future.result()
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
            yield from self._finished([frame], self._started([frame], clock, lost), clock, lost)

    def batches(self, frames: Iterable[Frame | None]) -> Iterator[list[Frame]]:
        """Group frames in batches; None ends one early, and so may a new size.

        A graph that takes whole frames needs one size.
        """
        group: list[Frame] = []
        whole = self._model.takes_frames
        for frame in frames:
            if group and (frame is None or (whole and group[0].image_HWC.shape != frame.image_HWC.shape)):
                yield group
                group = []
            if frame is not None:
                group.append(frame)
            if len(group) == self._batch:
                yield group
                group = []
        if group:
            yield group

    def results(
        self, frames: Iterable[Frame | None], clock: StageClock, lost: Callable[[Frame, Exception], None] | None = None
    ) -> Iterator[ResultFrame]:
        """Everything between the two queues; `lost` as of `maps`."""
        postprocess = self._postprocessor(stream=self._stream)
        postprocess.recall(self._memory)
        for frame, raw_map in self.maps(frames, clock, lost):
            try:
                with clock.stage("postprocess"):
                    mask_HW, decision = postprocess(frame, raw_map)
                with clock.stage("compose"):
                    result = self._compose(frame, mask_HW, decision)
            except Exception as error:
                if lost is None:
                    raise
                self.raise_where_all_fail(error)
                lost(frame, error)
                continue
            if self._remember and (frame.index + 1) % self._remember == 0:
                result = replace(result, memory=postprocess.memory)
            yield result

    def _postprocessor(self, *, stream: bool = False) -> Postprocessor:
        return self._model.postprocessor(stabilize=self._stabilize, empty_weak=self._empty_weak, stream=stream)

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
            self._compose(frame, *self._postprocessor()(frame, raw))
        except Exception:  # noqa: BLE001 - the first error is the one to tell
            if isinstance(error, BasnetError):
                raise error from None
            what = f"{model.name}, {model.backend.description}: every picture fails"
            raise kind(unexpected(what, error)) from error


class _Run:
    """The state of one `Pipeline.run`."""

    def __init__(self, pipeline: Pipeline, source: Source, sink: Sink, clock: StageClock) -> None:
        self._pipeline = pipeline
        self._source = source
        self._sink = sink
        self._clock = clock
        self._decoded: ClosableQueue[Frame | None] = ClosableQueue(_QUEUE_FRAMES)
        self._budget = ByteBudget(_QUEUE_BYTES, on_wait=lambda: self._decoded.put(None))
        self._results: ClosableQueue[ResultFrame] = ClosableQueue(_QUEUE_FRAMES)
        self._error: BaseException | None = None
        self._written = 0

    def execute(self) -> RunReport:
        start = time.perf_counter()
        decoder, encoder = (getattr(end, "codec_threads", None) for end in (self._source, self._sink))
        self._clock.start([threads for threads in (decoder, encoder) if threads])
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
        self._clock.finish(decoder, encoder)
        return RunReport(frames=self._written, seconds=time.perf_counter() - start, clock=self._clock)

    def _infer(self) -> None:
        on_failure = self._pipeline.on_failure

        def lost(frame: Frame, error: Exception) -> None:
            if on_failure is not None:
                on_failure(frame, error)
            self._budget.take(-frame.nbytes)

        try:
            for item in self._pipeline.results(self._decoded, self._clock, None if on_failure is None else lost):
                self._results.put(item)
        except Stopped:
            return  # a worker failed; its error is raised after both have ended
        self._results.close()

    def _read(self) -> None:
        frames, spent = self._source.frames(self._budget), self._clock.times["decode"]
        while True:
            waited = self._budget.waited
            with self._clock.stage("decode"):
                frame = next(frames, None)
            spent.wall -= self._budget.waited - waited
            if frame is None:
                break
            self._budget.take(frame.nbytes)
            self._decoded.put(frame)
        self._decoded.close()

    def _write(self) -> None:
        for item in self._results:
            with self._clock.stage("encode"):
                self._sink.write(item)
            self._written += 1
            if self._pipeline.on_frame is not None:
                self._pipeline.on_frame(item)
            self._budget.take(-item.frame.nbytes)
        with self._clock.stage("encode"):
            self._sink.finish()

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
        for part in (self._budget, self._decoded, self._results):
            part.stop()

    @staticmethod
    def _wait(workers: list[threading.Thread], seconds: float | None = None) -> None:
        for worker in workers:
            if worker.is_alive():
                worker.join(seconds)
