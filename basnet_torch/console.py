"""Terminal output of the commands: plain lines, the progress bar, all on stderr."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["progress_bar", "say", "stderr_console"]


def say(line: str) -> None:
    """Print one line on stderr as it is, whatever it contains."""
    if sys.stderr is None:  # closed by the caller; print would take stdout, where a result may be
        return
    print(" ".join(line.splitlines()), file=sys.stderr, flush=True)  # noqa: T201 - this is where commands speak


@lru_cache(maxsize=1)
def stderr_console() -> Console:
    """Return the rich console of stderr, so that stdout stays machine-readable."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress_bar(*, counted: bool = True, shown: bool | None = None) -> Progress:
    """Create the progress bar of a command.

    Args:
        counted: Show the count of steps; else the elapsed time, for work measured as a share.
        shown: Whether it is drawn and stays at the end; None draws it on a terminal only, until it stops.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr_console()
    middle = MofNCompleteColumn() if counted else TimeElapsedColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), middle, TimeRemainingColumn())
    hidden = not (console.is_terminal if shown is None else shown)
    return Progress(*columns, console=console, transient=shown is None, refresh_per_second=5, disable=hidden)
