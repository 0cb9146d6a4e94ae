"""Pipes: `-` reads standard input and writes standard output.

Whole files lie between, because decoders look at a file's end too, and so that nothing half-made is ever passed on.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TextIO

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Failure, ProgressListener, media_of
from basnet_runtime.command.run import Summary, result_suffix, run
from basnet_torch.errors import BasnetError, MediaError, UsageError
from basnet_torch.files import disk_errors, scratch_folder
from basnet_torch.unexpected import unexpected

__all__ = ["PIPE", "is_piped", "run_piped"]

PIPE = "-"


def is_piped(config: RunConfig) -> bool:
    """Whether standard input is read or standard output written."""
    return PIPE in config.inputs or config.output == PIPE


def run_piped(
    config: RunConfig,
    listener: ProgressListener,
    summary: Summary | None = None,
    *,
    source: BinaryIO | None = None,
    target: BinaryIO | None = None,
) -> Summary:
    """Run with `-` as input, output or both; without -o a pipe goes to a pipe.

    Args:
        config: What to run.
        listener: Receives progress callbacks.
        summary: Filled during the run.
        source: Instead of standard input.
        target: Instead of standard output.

    Raises:
        UsageError: There is more than one input, it is no file, or the output is a terminal.
        MediaError: Standard input or output is closed, broken or full.
        BasnetError: See `run`.
    """
    summary = summary if summary is not None else Summary()
    if len(config.inputs) != 1:
        raise UsageError("'-' stands for one input or one output; give nothing else beside it")
    if config.inputs[0] != PIPE and not Path(config.inputs[0]).is_file():
        raise UsageError(f"{config.inputs[0]}: is not one file, which alone can go to standard output; name a folder")
    to_pipe = config.output in (None, PIPE)
    if to_pipe:
        target = target or _open_stream("output", sys.stdout)
        if target.isatty():
            raise UsageError("the result would be written to the terminal; give -o FILE, or send it on with > or |")
    with scratch_folder() as folder, _named_pipes(folder):
        path = folder / "stdin" if config.inputs[0] == PIPE else Path(config.inputs[0])
        if config.inputs[0] == PIPE:
            with disk_errors("standard input: cannot be read"), path.open("wb") as file:
                shutil.copyfileobj(source or _open_stream("input", sys.stdin), file)
        made = folder / f"result{_suffix(path, config)}" if to_pipe else Path(str(config.output))
        try:
            run(replace(config, inputs=(str(path),), output=str(made)), listener, summary)
        except KeyboardInterrupt:
            if to_pipe:
                summary.results.clear()
                summary.notes[:] = ["interrupted before the result was whole: standard output got nothing"]
            _rename(summary, folder, None)
            raise
        if target is not None and to_pipe and summary.results:
            with disk_errors("standard output: cannot be written"), made.open("rb") as file:
                shutil.copyfileobj(file, target)
                target.flush()
        _rename(summary, folder, made if to_pipe else None)
    return summary


def _open_stream(name: str, stream: TextIO | None) -> BinaryIO:
    if stream is None:
        raise MediaError(f"standard {name}: is closed; give a file instead of '-'")
    return stream.buffer


@contextmanager
def _named_pipes(folder: Path) -> Iterator[None]:
    """Errors call the pipe by its name, not by the file it passed through."""
    try:
        yield
    except BasnetError as error:
        raise type(error)(str(error).replace(f"{folder}/stdin", "standard input")) from error


def _suffix(path: Path, config: RunConfig) -> str:
    try:
        media = media_of(path)
    except BasnetError:
        raise
    except Exception as error:
        raise MediaError(unexpected(path, error)) from error
    return result_suffix(config, path, media)


def _rename(summary: Summary, folder: Path, made: Path | None) -> None:
    """Call the pipe by its name, not by the file it passed through."""

    def shown(path: Path) -> Path:
        return Path(PIPE) if path == made or path.parent == folder else path

    summary.results[:] = [
        replace(result, source=shown(Path(result.source)), target=shown(Path(result.target)))
        for result in summary.results
    ]
    summary.failures[:] = [
        Failure(source=shown(item.source), error=item.error.replace(f"{folder}/stdin", "standard input"))
        for item in summary.failures
    ]
