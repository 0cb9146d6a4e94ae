"""Stage times of a run: clock, and CPU including the libraries' own threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from basnet_runtime.backends.base import WORKER_NAME

__all__ = ["STAGES", "LibraryThreads", "Stage", "StageClock", "StageTime", "thread_seconds"]

Stage = Literal["decode", "preprocess", "network", "postprocess", "compose", "encode"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_TASKS = Path("/proc/self/task")
_PICTURE_THREADS = "libvips"


class LibraryThreads:
    """CPU time of the threads that a library started, such as a codec's.

    Attributes:
        seconds: What they have used up to the last `collect`.
    """

    def __init__(self, used: dict[int, float] | None = None) -> None:
        """`used`: seconds of threads that exist already, by system id."""
        self.seconds = 0.0
        self._used = used or {}

    def __contains__(self, thread: object) -> bool:
        return thread in self._used

    @contextmanager
    def adopt(self) -> Iterator[None]:
        """Count the threads that the block starts, for example by opening a codec."""
        before = thread_seconds()
        yield
        pictures = thread_seconds(_PICTURE_THREADS)  # they come and go at any time, and belong to no codec or backend
        self._used |= {thread: 0.0 for thread in thread_seconds() if thread not in before and thread not in pictures}

    def collect(self) -> None:
        """Add what they have used since the last time; call before they end."""
        now = thread_seconds()
        for thread in self._used.keys() & now.keys():
            self.seconds += now[thread] - self._used[thread]
            self._used[thread] = now[thread]


@dataclass(kw_only=True, slots=True)
class StageTime:
    """Seconds one stage took.

    Attributes:
        wall: On the clock, in the one thread that runs the stage; waiting for other stages is not counted.
        cpu: Of CPU time, with the stage's library threads.
    """

    wall: float = 0.0
    cpu: float = 0.0


@dataclass(kw_only=True, slots=True)
class StageClock:
    """Adds up stage times; each stage belongs to one thread, so no lock is needed.

    Attributes:
        times: Seconds by stage.
        network: The backend's threads.
    """

    times: dict[Stage, StageTime] = field(default_factory=lambda: {stage: StageTime() for stage in STAGES})
    network: LibraryThreads = field(default_factory=LibraryThreads)
    _process: float = 0.0
    _pictures: dict[int, float] = field(default_factory=dict)

    def start(self, codecs: Iterable[LibraryThreads] = ()) -> None:
        """Begin: existing library threads, other than those of codecs, are the backend's."""
        python = {t.native_id or 0 for t in threading.enumerate() if not t.name.startswith(WORKER_NAME)}
        self._pictures = thread_seconds(_PICTURE_THREADS)
        others: list[Container[int]] = [python, self._pictures, *codecs]
        self.network = LibraryThreads(
            {thread: used for thread, used in thread_seconds().items() if not any(thread in known for known in others)}
        )
        self._process = time.process_time()

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Count the block's time for a stage."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            spent = self.times[name]
            spent.wall += time.perf_counter() - wall
            spent.cpu += time.thread_time() - cpu

    def finish(self, decoder: LibraryThreads | None, encoder: LibraryThreads | None) -> None:
        """Add the libraries' threads; libvips' are divided by the stages' clock times."""
        self.network.collect()
        self.times["network"].cpu += self.network.seconds
        used = sum(now - self._pictures.get(thread, 0.0) for thread, now in thread_seconds(_PICTURE_THREADS).items())
        decode, encode = self.times["decode"], self.times["encode"]
        reading = decode.wall / (decode.wall + encode.wall) if decode.wall > 0 else 0.0
        decode.cpu += used * reading + (decoder.seconds if decoder else 0.0)
        encode.cpu += used * (1 - reading) + (encoder.seconds if encoder else 0.0)

    def other(self) -> float:
        """CPU seconds since `start` outside all stages: progress display, library starts."""
        known = sum(spent.cpu for spent in self.times.values())
        return max(0.0, time.process_time() - self._process - known)


def thread_seconds(name: str = "") -> dict[int, float]:
    """Return CPU seconds of threads whose name starts with `name`, by system id.

    Empty off Linux.
    """
    seconds = {}
    tick = os.sysconf("SC_CLK_TCK")
    for folder in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            text = (folder / "stat").read_text()
        except OSError:  # the thread has just ended
            continue
        called, _, fields = text.partition("(")[2].rpartition(")")
        if called.startswith(name):
            user, system = fields.split()[11:13]
            seconds[int(folder.name)] = (int(user) + int(system)) / tick
    return seconds
