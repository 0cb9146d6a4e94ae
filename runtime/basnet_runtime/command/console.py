"""What every command shares at its edge: plain lines, and the console for progress, both on stderr."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["say", "stderr_console"]


def say(line: str) -> None:
    """Print one line on stderr as it is, whatever it contains."""
    if sys.stderr is None:  # closed by the caller; print would take stdout, where a result may be
        return
    print(" ".join(line.splitlines()), file=sys.stderr, flush=True)  # noqa: T201 - this is where commands speak


@lru_cache(maxsize=1)
def stderr_console() -> Console:
    """The rich console for progress and tables, on stderr so that stdout stays machine-readable."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)
