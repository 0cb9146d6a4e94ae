"""Send `kill -9` to a folder job at random moments: nothing lost, nothing half written, bytes of an undisturbed run.

The same command is started and killed again and again. After every kill, what lies in the output folder under its final
name must be byte for byte what an undisturbed run makes, and what was there before must not have been made again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from basnet_torch.errors import BasnetError

RUN_COMMAND = (sys.executable, "-c", "from basnet_runtime.command.cli import main; main()")
_Made = dict[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class KillConfig:
    """What to run and how often to kill it.

    Attributes:
        folder: Inputs, with their subfolders.
        work: An empty folder for the outputs.
        kills: How many processes are killed while they run.
        seed: Of the moments.
        command: What `basnet-run` is.
        options: Further options of it.
    """

    folder: Path
    work: Path
    kills: int = 50
    seed: int = 0
    command: Sequence[str] = RUN_COMMAND
    options: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class KillReport:
    """What the kills did.

    Attributes:
        inputs: Files the undisturbed run made.
        kills: Processes killed while they ran.
        jobs: Output folders that were filled, each by runs that were killed and a last one that was not.
        half_written: Kills that left an unfinished temporary file behind, which the next run removed.
        redone: Results made twice, of all those that were there when a process was killed.
        seconds: What the undisturbed run took.
        problems: Everything that was not as it must be.
    """

    inputs: int
    kills: int
    jobs: int
    half_written: int
    redone: int
    seconds: float
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems


def kill_folder_job(config: KillConfig) -> KillReport:
    """Do it.

    Raises:
        BasnetError: The undisturbed run makes nothing.
    """
    before = _contents(config.folder)
    start = time.monotonic()
    reference = config.work / "undisturbed"
    _process(config, reference).communicate()
    seconds = time.monotonic() - start
    expected = _contents(reference)
    if not expected:
        raise BasnetError(f"{config.folder}: the undisturbed run made nothing")
    trial = _Trial(config, expected, seconds)
    trial.run()
    if _contents(config.folder) != before:
        trial.problems.append("inputs changed")
    return KillReport(
        inputs=len(expected),
        kills=trial.kills,
        jobs=trial.jobs,
        half_written=trial.half_written,
        redone=trial.redone,
        seconds=round(seconds, 2),
        problems=tuple(trial.problems),
    )


class _Trial:
    """Fills output folders, one after another, until enough processes were killed."""

    def __init__(self, config: KillConfig, expected: dict[str, bytes], seconds: float) -> None:
        self._config = config
        self._expected = expected
        self._seconds = seconds
        self._random = random.Random(config.seed)
        self.kills = self.jobs = self.half_written = self.redone = 0
        self.problems: list[str] = []

    def run(self) -> None:
        while self.kills < self._config.kills and not self.problems:
            output = self._config.work / f"job{self.jobs}"
            self._fill(output)
            self.jobs += 1
            shutil.rmtree(output)

    def _fill(self, output: Path) -> None:
        """Start and kill until a run comes to its end by itself, or there were enough kills."""
        made: _Made = {}
        while self.kills < self._config.kills and self._killed(output):
            self.kills += 1
            made = self._check(output, made, whole=False)
        process = _process(self._config, output)
        _, told = process.communicate(timeout=600)
        if process.returncode not in (0, 1):
            self.problems.append(f"job {self.jobs}: exit code {process.returncode}: {told[-300:]!r}")
        self._check(output, made, whole=True)

    def _killed(self, output: Path) -> bool:
        """Whether it was still running at the moment drawn."""
        process = _process(self._config, output)
        deadline = time.monotonic() + self._random.uniform(0, 1.1 * self._seconds)
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        running = process.poll() is None
        if running:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return running

    def _check(self, output: Path, before: _Made, *, whole: bool) -> _Made:
        found = _contents(output)
        for name, content in found.items():
            if self._expected.get(name) != content:
                self.problems.append(f"job {self.jobs}, kill {self.kills}: {name} has other bytes")
        made = {name: _identity(output / name) for name in found}
        self.problems += [f"job {self.jobs}, kill {self.kills}: {name} is gone" for name in before.keys() - made.keys()]
        again = [name for name in before if made.get(name) != before[name]]
        self.redone += len(again)
        self.problems += [f"job {self.jobs}, kill {self.kills}: {name} was made again" for name in again]
        partials = list(output.rglob(".*.partial*")) if output.exists() else []
        if not whole:
            self.half_written += bool(partials)
        else:
            missing = self._expected.keys() - found.keys()
            self.problems += [f"job {self.jobs}: {name} is missing" for name in missing]
            self.problems += [f"job {self.jobs}: {path.name} was left behind" for path in partials]
        return made


def _process(config: KillConfig, output: Path) -> subprocess.Popen[bytes]:
    command = [*config.command, str(config.folder), "-o", str(output), "--recursive", "--keep-suffix", "--quiet"]
    return subprocess.Popen([*command, *config.options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file under its final name."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns
