"""Odd pictures, one process a file: the result or the one-line error, the time, the memory peak.

The peak is read from the kernel by the process itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basnet_runtime.command.jobs import media_of
from basnet_runtime.media.image.animation import AnimationSource
from basnet_runtime.media.image.pictures import PictureFile
from basnet_torch.errors import MediaError

_SECONDS_MAX = 300
# The kernel's own mark: getrusage in a child begins at the size of the process that started it.
_MEASURED = """
import re, sys
from pathlib import Path
from basnet_runtime.command.cli import main
try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    print(f"peak {peak}", file=sys.stderr)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class OddFile:
    """One file's end.

    Attributes:
        name: The file's name.
        outcome: What came out, or the error.
        exit_code: Of the command.
        seconds: From start to end of the process.
        cpu_seconds: Of processor time.
        peak_mb: Most memory of the process, megabytes.
    """

    name: str
    outcome: str
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


def measure_odd(path: Path, work: Path, *, kind: str = "cutout") -> OddFile:
    """Run one file; `work` is a folder for the output."""
    command = [sys.executable, "-c", _MEASURED, str(path), "-o", f"{work}/", "--kind", kind, "--json", "--keep-suffix"]
    before, start = os.times(), time.monotonic()
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS_MAX)
    seconds, after = time.monotonic() - start, os.times()
    lines = answer.stderr.splitlines()
    return OddFile(
        name=path.name,
        outcome=_outcome(answer, lines),
        exit_code=answer.returncode,
        seconds=round(seconds, 2),
        cpu_seconds=round(
            after.children_user + after.children_system - before.children_user - before.children_system, 2
        ),
        peak_mb=round(int(lines[-1].split()[1]) / 1000, 1) if lines and lines[-1].startswith("peak ") else 0.0,
    )


def _outcome(answer: subprocess.CompletedProcess[str], lines: list[str]) -> str:
    try:
        summary = json.loads(answer.stdout)
    except ValueError:
        return f"no result: {' / '.join(lines[-3:])}"
    for failure in summary["failures"]:
        return described_failure(failure)
    return described_result(summary["results"][0])


def described_result(result: Mapping[str, Any]) -> str:
    """A result as it stands in the table: format, size, frames, transparency, and what was said about it."""
    target = Path(result["target"])
    if media_of(target) == "animation":
        with AnimationSource(target) as source:
            info = source.info
        text = f"{target.suffix[1:]} {info.width}x{info.height}, {len(info.delays)} frames"
    else:
        with PictureFile(target, max_pixels=1 << 40) as picture:
            text = f"{target.suffix[1:]} {picture.width}x{picture.height}"
    notes = [note for note in result["notes"] if "salient" not in note]  # that is the model's word
    return "; ".join([text, *notes])


def described_failure(failure: Mapping[str, str]) -> str:
    """A failure as it stands in the table, without folders.

    Raises:
        MediaError: It has more than one line, which no error may have.
    """
    text = failure["error"]
    if "\n" in text:
        raise MediaError(f"an error of several lines: {text!r}")
    return f"error: {text.replace(failure['source'], Path(failure['source']).name)}"
