"""`basnet-run INPUT...`: masks, cut-outs and overlays of pictures, folders, globs and video.

This module only translates: options to a `RunConfig`, a `Summary` to lines or JSON. Heavy libraries load inside.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from basnet_runtime.command.arguments import plain_arguments
from basnet_runtime.cuda.base import CudaName
from basnet_runtime.kinds import BackendName, Precision
from basnet_torch.console import progress_bar, say
from basnet_torch.device import Device
from basnet_torch.errors import UsageError, exit_on_error

if TYPE_CHECKING:
    from basnet_runtime.command.run import RunConfig, Summary

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def run(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Pictures, video, folders, globs in quotes, camera:0, rtsp://..., -."),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder, file for one input, frames/%06d.png, or -. Default: beside each."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="mask, cutout, overlay, side, color:#rrggbb, image:FILE or blur.")
    ] = "mask",
    model: Annotated[
        Path | None, typer.Option("--engine", "--model", help=".pth, .onnx or .plan. Default: the built-in model.")
    ] = None,
    backend: Annotated[
        BackendName | None, typer.Option(help="Library to run with. Default: chosen by the file.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, openvino, or cuda, tensorrt, rtx, alone or as cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network. Default: all allowed.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures or frames per network run.")] = 1,
    precision: Annotated[
        Precision | None, typer.Option(help="Compute in this. Default: as the file was written.")
    ] = None,
    cuda: Annotated[CudaName, typer.Option(help="Library that moves an engine's data on the GPU.")] = "cuda-core",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out inputs that have outputs.")] = False,
    keep_suffix: Annotated[bool, typer.Option("--keep-suffix", help="a.jpg becomes a.jpg.mask.png.")] = False,
    picture_format: Annotated[
        Literal["png", "jpg", "webp", "tiff"] | None,
        typer.Option("--format", help="Format of pictures' results. Default: by -o, else png."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow folders: do what comes, until Ctrl-C.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Take subfolders too.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Make masks hard: foreground from this share on, such as 0.5.")
    ] = None,
    feather: Annotated[float, typer.Option(help="Blur the mask's edge by this many pixels.")] = 0.0,
    refine_edges: Annotated[
        bool, typer.Option("--refine-edges", help="Lay the mask's edges onto the picture's.")
    ] = False,
    stabilize: Annotated[bool, typer.Option("--stabilize", help="Keep the masks of a video from flickering.")] = False,
    empty_weak: Annotated[
        bool, typer.Option("--empty-weak", help="Empty masks where nothing salient was found. Default: kept, and said.")
    ] = False,
    codec: Annotated[
        Literal["h264", "hevc", "av1", "vp9", "prores", "ffv1"] | None,
        typer.Option(help="Codec of video results. Default: the container's usual one."),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="Of video results, more is better. Default: right for most.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Of video, begin here: seconds, 1:02:03.5 or a frame's number such as 300f.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="Of video, end before here; as --start.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Do video in segments, and go on where a killed run was.")
    ] = False,
    no_sound: Annotated[bool, typer.Option("--no-sound", help="Leave the audio of video out.")] = False,
    no_subtitles: Annotated[bool, typer.Option("--no-subtitles", help="Leave the subtitles of video out.")] = False,
    video_track: Annotated[
        int | None, typer.Option(min=1, help="Video track, counted from 1. Default: the file's default track.")
    ] = None,
    hwaccel: Annotated[
        Literal["auto", "none", "cuda"], typer.Option(help="Hardware that decodes and encodes video.")
    ] = "auto",
    page: Annotated[
        int | None,
        typer.Option(min=1, help="Page of TIFF, HEIF, AVIF and ICO, from 1. Default: the main picture."),
    ] = None,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger pictures.")] = 300_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but warnings and errors.")] = False,
) -> None:
    """Find the salient object in pictures and video.

    Without options, photo.jpg becomes photo.mask.png and clip.mp4 becomes clip.mask.mp4 with its sound.
    """
    from basnet_runtime.command.run import RunConfig
    from basnet_runtime.kinds import OutputKind
    from basnet_runtime.media.video.options import Span, VideoOptions

    with exit_on_error():
        config = RunConfig(
            inputs=inputs,
            output=output,
            kind=OutputKind.parse(kind),
            model=model,
            backend=backend,
            device=Device.parse(device),
            threads=threads,
            precision=precision,
            cuda=cuda,
            batch=batch,
            max_pixels=max_pixels,
            page=page,
            recursive=recursive,
            overwrite=overwrite,
            skip_existing=skip_existing,
            keep_suffix=keep_suffix,
            picture_format=picture_format,
            threshold=threshold,
            feather=feather,
            refine_edges=refine_edges,
            stabilize=stabilize,
            empty_weak=empty_weak,
            video=VideoOptions(
                codec=codec,
                quality=quality,
                span=Span.parse(start, end),
                resume=resume,
                hwaccel=hwaccel,
                sound=not no_sound,
                subtitles=not no_subtitles,
                track=video_track,
            ),
        )
        summary = _run(config, as_json, quiet, watch)
        _report(summary, as_json, quiet, told=watch)
    raise SystemExit(1 if summary.failures else 0)


def _run(config: RunConfig, as_json: bool, quiet: bool, watch: bool) -> Summary:
    from basnet_runtime.command.pipes import is_piped, run_piped
    from basnet_runtime.command.run import Summary, follow
    from basnet_runtime.command.run import run as run_files

    if as_json and is_piped(config) and config.output in (None, "-"):
        raise UsageError("--json and the result would both go to standard output; give -o FILE")

    summary = Summary()
    shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
    try:
        with _Bar(shown=shown) as bar:
            if watch:
                tell = _Teller(summary, quiet)
                follow(config, bar, summary, tell)
                tell()  # of what was done in the look that was interrupted
                return summary
            return (run_piped if is_piped(config) else run_files)(config, bar, summary)
    except KeyboardInterrupt:  # what was done before stays, and is told
        if summary.results or summary.failures or summary.notes:
            _report(summary, as_json, quiet)
            say(f"interrupted after {sum(result.complete for result in summary.results)} finished outputs")
        raise


class _Teller:
    """Tells of each result and failure as it comes."""

    def __init__(self, summary: Summary, quiet: bool) -> None:
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


def _report(summary: Summary, as_json: bool, quiet: bool, *, told: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(summary.to_dict(), indent=2))
    for note in summary.notes:
        say(f"note: {note}")
    for result in summary.results:
        if not quiet and not as_json and not told and len(summary.results) <= 10:
            say(f"{result.source} -> {result.target}")
        for note in () if told else result.notes:
            say(f"note: {result.source}: {note}")
    if summary.frames and not quiet:
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
        say(f"processor time per frame: {', '.join(shares)}")


def main() -> None:
    """Run the command; usage errors end with 2, Ctrl-C and the end asked by a system (SIGTERM, SIGHUP) with 130."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # else half a file would stay behind
        if signal.getsignal(name) != signal.SIG_IGN:  # nohup asks for this
            signal.signal(name, signal.default_int_handler)
    values = plain_arguments(run, sys.argv[1:])
    if values is None:
        app()
        return
    _import_numpy()
    try:
        run(**values)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # as typer has it: whoever reads has gone, and the last flush must not say so
        with suppress(OSError, AttributeError), Path(os.devnull).open("wb") as nowhere:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere.fileno(), stream.fileno())
        raise SystemExit(1) from None


def _import_numpy() -> None:
    """Load numpy without the threads of its matrix library: nothing here multiplies matrices, and they cost 25 ms."""
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        return
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401 - the number is read when it loads
    finally:
        del os.environ[name]  # other libraries have matrix libraries of their own
