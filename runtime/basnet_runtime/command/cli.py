"""`basnet-run INPUT...`: masks and cut-outs of pictures, folders and video.

This module only translates: options to a `RunConfig`, a `Summary` to lines or JSON. Heavy libraries load inside, and
typer where a line is not plain.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from basnet_runtime.cluster.buckets import is_bucket
from basnet_runtime.command.arguments import plain_arguments
from basnet_runtime.command.config import RunConfig, Shown
from basnet_torch.console import progress_bar, say
from basnet_torch.errors import UsageError, exit_on_error
from basnet_torch.options import build, options_of, takes

if TYPE_CHECKING:
    import typer

    from basnet_runtime.command.run import Summary

    app: typer.Typer

__all__ = ["app", "main"]


def run(**values: Any) -> None:
    """Find the salient object in pictures and video.

    Without options, photo.jpg becomes photo.mask.png and clip.mp4 becomes clip.mask.mp4 with its sound.
    """
    shown = build(Shown, values)
    with exit_on_error():
        summary = _run(build(RunConfig, values), shown)
        _report(summary, shown, told=shown.watch)
    raise SystemExit(1 if summary.failures else 0)


@cache
def _app() -> typer.Typer:
    import typer

    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    made.command()(takes(RunConfig, Shown)(run))
    return made


def __getattr__(name: str) -> Any:
    if name == "app":  # typer is loaded where a line is for it to read
        return _app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _run(config: RunConfig, shown: Shown) -> Summary:
    from basnet_runtime.command.pipes import is_piped, run_piped
    from basnet_runtime.command.run import Summary, follow
    from basnet_runtime.command.run import run as run_files
    from basnet_runtime.media.video.open import camera_of, is_address

    if shown.as_json and is_piped(config) and config.output in (None, "-"):
        raise UsageError("--json and the result would both go to standard output; give -o FILE")

    bucket = next(filter(is_bucket, (*config.inputs, config.output or "")), None)
    where = bucket if config.cluster is None else f"--cluster {config.cluster}"
    streams = any(is_address(text) or camera_of(text) is not None for text in config.inputs if not is_bucket(text))
    if where is not None and (shown.watch or is_piped(config) or streams):
        raise UsageError(
            f"{where}: goes with files alone, not with --watch, '-', cameras or network streams; leave it out"
        )

    if shown.watch or where is not None or is_piped(config):
        _collect_from_here()
    summary = Summary()
    try:
        with _Bar(shown=not shown.quiet and sys.stderr is not None and sys.stderr.isatty()) as bar:
            if shown.watch:
                tell = _Teller(summary, quiet=shown.quiet)
                follow(config, bar, summary, tell)
                tell()  # of what was done in the look that was interrupted
                return summary
            if where is not None:
                from basnet_runtime.command.cluster import run_on_cluster

                return run_on_cluster(config, bar, summary, say if not shown.quiet else lambda _: None)
            return (run_piped if is_piped(config) else run_files)(config, bar, summary)
    except KeyboardInterrupt:  # what was done before stays, and is reported
        if summary.results or summary.failures or summary.notes:
            _report(summary, shown)
            say(f"interrupted after {sum(result.complete for result in summary.results)} finished outputs")
        raise


class _Teller:
    """Tells of each result and failure as it comes."""

    def __init__(self, summary: Summary, *, quiet: bool) -> None:
        self._summary = summary
        self._quiet = quiet
        self._results = self._failures = 0

    def __call__(self) -> None:
        for result in self._summary.results[self._results :]:
            if not self._quiet:
                say(f"{result.source} -> {result.target}")
            for note in result.notes:
                say(f"note: {result.source}: {note}")
        for failure in self._summary.failures[self._failures :]:
            say(f"error: {failure.error}")
        self._results, self._failures = len(self._summary.results), len(self._summary.failures)


class _Bar:
    """Progress bars of a run, on a terminal; rich is loaded by the first one."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._progress: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def started(self, what: str, total: int) -> None:
        _collect_from_here()
        if not self._shown or total == 1:  # one step is no progress to show, and rich takes longer than a photo
            return
        from rich.markup import escape

        if self._progress is None:
            self._progress = progress_bar()
            self._progress.start()
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escape(what), total=total or None)

    def advanced(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)


def _report(summary: Summary, shown: Shown, *, told: bool = False) -> None:
    if shown.as_json:
        import typer

        typer.echo(json.dumps(summary.to_dict(), indent=2))
    for note in summary.notes:
        say(f"note: {note}")
    for result in summary.results:
        if not shown.quiet and not shown.as_json and not told and len(summary.results) <= 10:
            say(f"{result.source} -> {result.target}")
        for note in () if told else result.notes:
            say(f"note: {result.source}: {note}")
    if summary.frames and not shown.quiet:
        _report_speed(summary)
    for failure in summary.failures:
        say(f"error: {failure.error}")
    if len(summary.failures) > 1 or (summary.failures and summary.results):
        say(f"{len(summary.failures)} of {len(summary.failures) + len(summary.results)} inputs failed")


def _report_speed(summary: Summary) -> None:
    say(f"{summary.model} on {summary.runs_on}")
    for coding in dict.fromkeys(result.coding for result in summary.results if result.coding):
        say(f"video {coding}")
    say(f"{summary.frames} frames in {summary.seconds:.2f} s, {summary.frames_per_second:.1f} frames per second")
    total = sum(cpu for _, cpu in summary.seconds_by_stage.values())
    shares = (
        f"{stage} {cpu / total:.0%} ({1000 * cpu / summary.frames:.1f} ms)"
        for stage, (_, cpu) in summary.seconds_by_stage.items()
    )
    if total > 0:
        say(f"CPU time per frame: {', '.join(shares)}")


def main() -> None:
    """Run the command; usage errors exit with 2, Ctrl-C, SIGTERM and SIGHUP with 130."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # else half a file would stay behind
        if signal.getsignal(name) != signal.SIG_IGN:  # nohup asks for this
            signal.signal(name, signal.default_int_handler)
    atexit.register(gc.freeze)  # the interpreter's last collections would visit every object that goes anyway
    gc.disable()  # loading leaves no garbage, and collects it 80 times
    try:
        _main()
    finally:
        gc.enable()


def _main() -> None:
    values = plain_arguments((*options_of(RunConfig), *options_of(Shown)), sys.argv[1:])
    if values is None:
        _app()()
        return
    _import_arrays()
    try:
        run(**values)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # as typer has it: whoever reads has gone, and the last flush must not say so
        with suppress(OSError, AttributeError), Path(os.devnull).open("wb") as nowhere:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere.fileno(), stream.fileno())
        raise SystemExit(1) from None


def _collect_from_here() -> None:
    """Enable the garbage collector, for what is made from now on: what was loaded stays."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _import_arrays() -> None:
    """Load numpy and OpenCV without the threads of their matrix libraries.

    Matrices here are small, and new threads wait busily for work, which costs 25 ms and more of each.
    """
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        return
    os.environ[name] = "1"
    try:
        import cv2  # noqa: F401
        import numpy  # noqa: F401 - the number is read when they load
    finally:
        del os.environ[name]  # other libraries have matrix libraries of their own
