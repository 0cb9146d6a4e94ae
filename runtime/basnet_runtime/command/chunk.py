"""A worker's side of `--cluster`: open the model once, run jobs as usual.

The driver sends these functions by name with an `Order`; Dask knows nothing of pictures, and nothing here knows Dask.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Self

from basnet_runtime.cluster.buckets import put_text, url_of
from basnet_runtime.cluster.facts import Facts, Probe, Refused, differences, own_versions, worker_facts
from basnet_runtime.command.buckets import on_copies
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Job
from basnet_runtime.command.run import Summary, Work, composer_of, opencv_out_of_the_way, opened_model
from basnet_runtime.manifest import manifest_path
from basnet_runtime.model import SaliencyModel
from basnet_runtime.open import builtin_model
from basnet_torch import files
from basnet_torch.errors import BasnetError, MediaError
from basnet_torch.files import Closing

__all__ = ["Item", "Order", "Outcome", "greet", "run_chunk", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What all pieces of a run share.

    Attributes:
        run: The driver's `RUN`, by which it finds what dead workers left half written.
        config: How, with absolute paths.
        local: Whether the worker was started by the driver and has its standard output.
        probe: What a worker has to see.
        expected: Facts of the worker that was accepted first; before that, the model that the driver has.
    """

    run: str
    config: RunConfig
    local: bool
    probe: Probe
    expected: Facts | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One job of a piece, with absolute paths.

    Attributes:
        job: The job.
        claim: File or object that says that a worker has begun this job in this run: from then on a target is this
            run's own. Empty where there is one worker.
        ours: Whether an earlier run had begun it.
        segments: Of a video that several workers share: which to make. None runs the job; `joins` what they made.
        joins: Whether the segments of the video are there.
    """

    job: Job
    claim: str
    ours: bool = False
    segments: range | None = None
    joins: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A worker's result: summary of its jobs, its name, CPU time, bytes uploaded."""

    summary: Summary
    facts: Facts
    cpu_seconds: float
    sizes: dict[str, int] = field(default_factory=dict)


_ONE_AT_A_TIME = threading.RLock()  # a worker with several threads has one model all the same
_OPENED: dict[tuple[RunConfig, str], tuple[SaliencyModel, Facts]] = {}
_STOPPED: set[str] = set()
_IDLE_SECONDS = 900.0  # without a picture or frame, after which a worker ends itself
_IDLE_TIMES = 100.0  # of the mean of its piece, where that is longer


def greet(order: Order) -> Facts:
    """Open the model, look for inputs and output, and say what this worker is.

    Raises:
        BasnetError: It cannot work.
    """
    with _ONE_AT_A_TIME:
        if order.local:  # what is printed here, by C code too, must not get into the driver's --json
            sys.stdout.flush()
            os.dup2(2, 1)
        with _named(order.config):
            model = order.config.model
            if model is not None and order.expected is not None and not model.is_file():
                raise Refused(f"does not see the model {model}; mount it there under the same path")
            _, facts = _opened(order.config)
        order.probe.check(facts.node)
        return facts


@contextmanager
def _named(config: RunConfig) -> Iterator[None]:
    """Name the node in what ends the run; the kind of the error stays, and with it the exit code."""
    try:
        yield
    except BasnetError as error:
        if config.cluster is None:
            raise
        raise type(error)(f"node {own_versions().node}: {error}") from error


def _opened(config: RunConfig) -> tuple[SaliencyModel, Facts]:
    there = () if config.model is None else (config.model, manifest_path(config.model))
    identity = str([files.file_identity(path) for path in there if path.is_file()])  # a worker outlives its files
    key = RunConfig(inputs=(), model=config.model, **config.model_options()), identity
    if key not in _OPENED:
        for model, _ in _OPENED.values():
            model.close()  # of another job: a device's memory holds one
        _OPENED.clear()
        model = opened_model(config)
        path = config.model or builtin_model(config.backend, config.device, config.precision)
        _OPENED[key] = model, worker_facts(path, device=str(config.device), runs_on=model.backend.description)
    return _OPENED[key]


def run_chunk(order: Order, items: Sequence[Item]) -> Outcome:
    """Run jobs; a picture or video that fails is in the outcome.

    Raises:
        BasnetError: Every other job would fail as well.
    """
    with _ONE_AT_A_TIME:
        began = time.process_time()
        model, facts = _opened(order.config)
        if order.expected is not None:  # one that joined late may have been given work before it was asked
            differences(facts, order.expected)
        files.RUN = order.run
        summary, sizes = Summary(), dict[str, int]()
        watch = _Watch(order)
        begun = {claim for claim in {item.claim for item in items if item.claim} if not _claimed(Path(claim))}

        def run(items: Sequence[Item], replaces: bool) -> None:  # noqa: FBT001
            config = replace(order.config, overwrite=order.config.overwrite or replaces)
            if any(item.segments is not None or item.joins for item in items):
                config = replace(config, video=replace(config.video, resume=True))
            joins = any(item.joins for item in items)
            work = partial(Work, config=config, model=model, composer=composer_of(config), journal=None, joins=joins)
            work = partial(work, listener=watch, alive=watch.alive)
            jobs = [item.job for item in items if item.segments is None]

            def ran(copies: list[Job]) -> Summary:
                own = Summary()
                with watch:
                    work(summary=own).run(copies)
                return own

            with watch:
                for item in items:
                    if item.segments is not None:
                        work(summary=summary).make_segments(item.job, item.segments)
            if any(url_of(job.source) or url_of(job.target) for job in jobs):
                found, there = on_copies(config, jobs, ran)
                sizes.update(there)
                summary.merge(found)
                summary.seconds += found.seconds
            else:
                with watch:
                    work(summary=summary).run(jobs)
                for result in summary.results:
                    with suppress(OSError):
                        sizes[str(result.target)] = Path(result.target).stat().st_size

        with _named(order.config), opencv_out_of_the_way(order.config.device), suppress(_Interrupted):
            for replaces in (False, True):
                run([item for item in items if (item.ours or item.claim in begun) == replaces], replaces)
        return Outcome(summary=summary, facts=facts, cpu_seconds=time.process_time() - began, sizes=sizes)


def _claimed(claim: Path) -> bool:
    """Whether the piece is begun for the first time; else a worker died over it, and its targets may be replaced."""
    if url_of(claim):
        try:
            put_text(claim, files.RUN, replace=False)
        except FileExistsError:
            return False
        except MediaError:  # a store that refuses says so of each result
            pass
        return True
    with suppress(OSError):  # so does a disk
        claim.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
    return True


def stop(run: str) -> None:
    """End the pieces of a run after the picture in hand; called beside them."""
    _STOPPED.add(run)


class _Interrupted(KeyboardInterrupt):
    """The driver wants no more of this piece."""


class _Watch(Closing):
    """Ends a piece when its run was stopped, and its worker when that does nothing any more.

    Only the end of the process ends a thread that hangs. The nanny starts another, as after any death.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._began = self._armed = 0.0
        self._count = 0

    def __enter__(self) -> Self:
        self._began, self._armed, self._count = time.monotonic(), 0.0, 0
        self.alive()
        return self

    def close(self) -> None:
        """Nothing is waited for any more."""
        faulthandler.cancel_dump_traceback_later()

    def started(self, what: str, total: int) -> None:
        """Nobody watches a worker's progress."""

    def advanced(self) -> None:
        """After each picture or frame."""
        if self._order.run in _STOPPED:
            raise _Interrupted
        self._count += 1
        self.alive()

    def alive(self) -> None:
        """Give it the whole time again."""
        now = time.monotonic()
        if self._order.config.cluster is None or now - self._armed < min(1.0, _IDLE_SECONDS / 2):
            return
        self._armed = now
        limit = max(_IDLE_SECONDS, _IDLE_TIMES * (now - self._began) / max(1, self._count))
        # A thread of C, which needs no Python. Where it hung is for a worker's log, not for a terminal.
        faulthandler.dump_traceback_later(limit, exit=True, file=_nowhere() if self._order.local else 2)


@cache
def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)
