"""Build progress, and clean cancellation by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from basnet_runtime.backends.tensorrt.library import TensorRT

__all__ = ["BuildProgress", "Interruptible", "progress_monitor"]


class BuildProgress:
    """Receives progress callbacks; this base class ignores them."""

    def say(self, what: str) -> None:
        """Report a step without a measure."""

    def advanced(self, phase: str, share: float) -> None:
        """Report the current phase and the share of the build that is done, 0..1."""


class Interruptible:
    """Set `interrupted` on the first Ctrl-C, as native code runs; raise on the next."""

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(number, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def progress_monitor(library: TensorRT, progress: BuildProgress, interruptible: Interruptible) -> Any:
    """Create a monitor that reports one share and cancels interrupted builds."""
    base = library.trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # name: parent, steps, done

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = parent_phase, max(num_steps, 1), 0

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                parent, steps, _ = self._phases[phase_name]
                self._phases[phase_name] = parent, steps, min(step + 1, steps)
                progress.advanced(phase_name, self._share(phase_name))
            return not interruptible.interrupted

        def _share(self, name: str | None) -> float:
            """The share of the outermost phase; each phase is part of one step of its parent."""
            share = 0.0
            while name is not None and name in self._phases:
                name, steps, done = self._phases[name]
                share = min(1.0, (done + share) / steps)
            return share

    return Monitor()
