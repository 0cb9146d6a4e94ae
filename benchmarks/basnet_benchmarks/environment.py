"""Environment of a measurement: CPU, threads, versions, commit, date, GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from basnet_runtime.machine.cpu_features import processor_flags
from basnet_runtime.machine.installed import installed_version
from basnet_runtime.machine.threads import allowed_threads
from basnet_torch import __version__

__all__ = ["Clocks", "Environment", "clocks", "commit_of", "environment"]

_FLAGS = (
    *("avx2", "f16c", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve"),
)
_LIBRARIES = (
    *("numpy", "opencv-python-headless", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
    *("onnxruntime-ep-openvino", "openvino", "tensorrt", "av", "pyvips"),
)
_CPUINFO = Path("/proc/cpuinfo")
_CPUFREQ = Path("/sys/devices/system/cpu")
_ASK_SECONDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """One machine at one time."""

    processor: str  # model name
    processor_flags: tuple[str, ...]  # instruction sets that decide how fast a network runs
    processors: int  # logical CPUs of the machine
    threads: int  # threads the network was given
    load: float | None  # average number of running processes in the minute before; None where the system does not tell
    libraries: dict[str, str]  # name to version of those installed
    python: str  # version
    system: str  # operating system and architecture
    commit: str  # of the source, with `+changes` when it is not clean; the package's version outside a checkout
    date: str  # ISO 8601, UTC
    gpus: tuple[str, ...]  # name and driver of each graphics card

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to measure now."""
        if self.load is None or self.load < 0.5:
            return ()
        return (f"{self.load:.1f} processes were running before; times of a busy machine are not to be trusted",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """How fast the machine ran at one moment; empty where the system does not tell."""

    mhz: tuple[float, ...]  # of every CPU
    source: str  # where that was read; a virtual machine may show its nominal clock there
    gpus: tuple[str, ...]  # of every graphics card: clocks, temperature, power, and what holds it back


def clocks(cpuinfo: Path = _CPUINFO, cpufreq: Path = _CPUFREQ) -> Clocks:
    """Read clock rates now; takes milliseconds on a CPU, tens with a GPU."""
    scaling = [_number(path) for path in sorted(cpufreq.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    mhz, source = tuple(khz / 1000 for khz in scaling if khz is not None), "scaling_cur_freq"
    if not mhz:
        mhz, source = tuple(map(float, _cpuinfo("cpu mhz", cpuinfo))), "/proc/cpuinfo"
    asked = "--query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"
    cards = tuple((_output(("nvidia-smi", asked, "--format=csv,noheader")) or "").splitlines())
    return Clocks(mhz=mhz, source=source if mhz else "", gpus=cards)


def _cpuinfo(key: str, cpuinfo: Path = _CPUINFO) -> tuple[str, ...]:
    """Values of the lines that begin with that key; none where the system does not tell."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ()
    return tuple(line.partition(":")[2].strip() for line in lines if line.lower().startswith(key))


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def environment(threads: int | None = None) -> Environment:
    """Describe this machine without loading a library; `threads` are the network's."""
    flags, names = processor_flags() or frozenset(), _cpuinfo("model name")
    answer = _output(("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"))
    cards = (line.split(",") for line in (answer or "").splitlines())
    return Environment(
        processor=next(iter(names), "") or platform.processor() or platform.machine() or "unknown",
        processor_flags=tuple(flag for flag in _FLAGS if flag in flags),
        processors=os.cpu_count() or 1,
        threads=threads or allowed_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        libraries={name: number for name in _LIBRARIES if (number := installed_version(name))},
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        commit=commit_of(Path(__file__)),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        gpus=tuple(f"{name.strip()}, driver {driver.strip()}" for name, driver in (c for c in cards if len(c) == 2)),
    )


def commit_of(file: Path) -> str:
    """Return the commit that holds `file`, or the package's version outside git."""
    packaged = f"basnet-deploy {__version__}"
    git = ("git", "-C", str(file.parent))
    # An installed package may lie in a virtual environment inside somebody's repository, whose commit says nothing.
    if _output((*git, "ls-files", "--error-unmatch", file.name)) is None:
        return packaged
    commit = _output((*git, "rev-parse", "HEAD"))
    if commit is None:
        return packaged
    changed = _output((*git, "status", "--porcelain", "--untracked-files=no"))
    return f"{commit}+changes" if changed else commit


def _output(command: Sequence[str]) -> str | None:
    """What a program prints, or None when it is not there or fails."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        answer = subprocess.run(  # noqa: S603 - fixed programs, no shell
            (program, *command[1:]), capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
