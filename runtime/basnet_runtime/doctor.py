"""`basnet-doctor`: check what can run here, and give the command that fixes it.

Every library is asked in a process of its own, so that a broken driver or a crash at import is a finding, not the end.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import typer

from basnet_runtime.backends.openvino_provider import has_plugin_here
from basnet_runtime.backends.rtx_provider import RTX_PACKAGES
from basnet_runtime.machine.cpu_features import processor_flags, why_no_bf16
from basnet_runtime.machine.installed import installed_version
from basnet_runtime.machine.threads import allowed_threads, cgroup_quota
from basnet_torch import __version__
from basnet_torch.errors import exit_on_error

__all__ = ["Finding", "State", "app", "examine", "main"]

State = Literal["ok", "missing", "error"]
_PROBE_SECONDS = 120
_FLAGS = ("avx2", "f16c", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
_BACKENDS = ("onnxruntime", "openvino", "pytorch")
_PYTHON = (sys.executable, "-P", "-W", "ignore", "-c")  # -P: a file of the same name here is not the library
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        state: `ok`, `missing` (a part this machine could have), or `error` (something that must be mended).
        detail: Versions, devices, or the reason.
        fix: The command that fixes it, or empty.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Library:
    """A library to ask: `code` prints one line about it, as JSON of state, detail and fix where it `tells_state`."""

    name: str
    packages: tuple[str, ...]
    code: str
    fix: str
    needed: bool = False
    tells_state: bool = False


_LIBRARIES = (
    _Library(
        name="pictures",
        packages=("pyvips",),
        code="import pyvips; print('libvips', '.'.join(str(pyvips.version(i)) for i in range(3)))",
        fix="pip install 'pyvips[binary]'",
        needed=True,
    ),
    _Library(
        name="video",
        packages=("av",),
        code="import av; c = sorted({'libx264', 'libvpx-vp9', 'prores_ks', 'h264_nvenc'} & av.codecs_available); "
        "print('PyAV', av.__version__ + ', encoders', *c)",
        fix="pip install av",
        needed=True,
    ),
    _Library(
        name="array work",
        packages=("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
        code="import cv2; print('OpenCV', cv2.__version__)",
        fix="pip install opencv-python-headless",
        needed=True,
    ),
    _Library(
        name="onnxruntime",
        packages=("onnxruntime", "onnxruntime-gpu"),
        code="import onnxruntime as o; print(o.__version__ + ', providers', *o.get_available_providers())",
        fix="pip install 'basnet-deploy[cpu]'",
    ),
    _Library(
        name="openvino",
        packages=("openvino",),
        code="from basnet_torch.telemetry import without_openvino_telemetry as silent\n"
        "with silent():\n import openvino as o\n"
        "print(o.__version__.split('-')[0] + ', devices', *o.Core().available_devices)",
        fix="pip install 'basnet-deploy[openvino]'",
    ),
    _Library(
        name="pytorch",
        packages=("torch",),
        code="import torch as t; c = t.cuda.is_available(); "
        "print(t.__version__ + ',', 'CUDA ' + t.version.cuda + ' on ' + t.cuda.get_device_name() if c else 'no CUDA')",
        fix="pip install 'basnet-deploy[train]'",
    ),
    _Library(
        name="tensorrt",
        packages=("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
        code="import tensorrt as t; print(t.__version__)",
        fix="pip install 'basnet-deploy[gpu]'",
    ),
    _Library(
        name="tensorrt-rtx",
        packages=("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
        code="import tensorrt_rtx as t; print(t.__version__)",
        fix="pip install 'basnet-deploy[rtx]'",
    ),
    _Library(
        name="cuda-core",
        packages=("cuda-core",),
        code="import cuda.core as c; print(c.__version__)",
        fix="pip install cuda-core cuda-bindings",
    ),
)


_OPENVINO_PROVIDER = _Library(
    name="openvino provider",
    packages=("onnxruntime-ep-openvino",),
    code="import json, onnxruntime as o; from basnet_runtime.backends import openvino_provider as p; "
    "n = p.why_no_devices(o); s = 'ok' if n is None else 'error' if n.is_fault else 'missing'; "
    "print(json.dumps([s, n.reason, n.fix] if n else [s, p.openvino_version() + ', for onnxruntime', '']))",
    fix="pip install 'basnet-deploy[openvino-ep]'",
    tells_state=True,
)

_RTX_PROVIDER = _Library(
    name="rtx provider",
    packages=RTX_PACKAGES,
    code="import json, onnxruntime as o; from basnet_runtime.backends import rtx_provider as p; "
    "n = p.why_no_rtx(o); s = 'ok' if n is None else 'error' if n.is_fault else 'missing'; v = p.rtx_plugin_version(); "
    "print(json.dumps([s, f'{v}: {n.reason}', n.fix] if n else [s, f'{v}, {len(p.rtx_devices(o))} GPUs', '']))",
    fix="pip install 'basnet-deploy[rtx-ep]'",
    tells_state=True,
)


def examine() -> list[Finding]:
    """Check everything; takes seconds, because each installed library is imported."""
    with ThreadPoolExecutor(max_workers=allowed_threads()) as pool:
        asked = (*_LIBRARIES, _OPENVINO_PROVIDER, _RTX_PROVIDER) if has_plugin_here() else _LIBRARIES
        libraries = list(pool.map(_examine_library, asked))
    findings = [_examine_program(), _examine_cpu(), _examine_threads(), _examine_gpu(), *libraries]
    return [*findings, *_gaps(findings), *_conflicts()]


def _examine_program() -> Finding:
    detail = f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding(name="basnet-deploy", state="ok", detail=detail)


def _examine_cpu() -> Finding:
    flags = processor_flags() or frozenset()
    known = " ".join(flag for flag in _FLAGS if flag in flags) or "no known extensions"
    reason = why_no_bf16()
    return Finding(name="CPU", state="ok", detail=f"{known}; bfloat16: {reason or 'built in'}")


def _examine_threads() -> Finding:
    quota = cgroup_quota()
    limit = "no container quota" if quota is None else f"container quota {quota:g} CPUs"
    return Finding(name="threads", state="ok", detail=f"{allowed_threads()} allowed ({limit})")


def _examine_gpu() -> Finding:
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return Finding(name="gpu", state="missing", detail="no NVIDIA driver")
    if answer.returncode:
        return Finding(name="gpu", state="missing", detail=_last_line(answer.stdout + answer.stderr))
    return Finding(name="gpu", state="ok", detail="; ".join(answer.stdout.strip().splitlines()))


def _examine_library(library: _Library) -> Finding:
    if not any(installed_version(package) for package in library.packages):
        state: State = "error" if library.needed else "missing"
        return Finding(name=library.name, state=state, detail="not installed", fix=library.fix)
    try:
        answer = subprocess.run(  # noqa: S603 - the code is a constant of this module
            (*_PYTHON, library.code), capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name=library.name, state="error", detail=f"does not answer within {_PROBE_SECONDS} s")
    if answer.returncode:
        reason = _last_line(answer.stderr) or f"its process ended with {answer.returncode}"
        return Finding(name=library.name, state="error", detail=f"installed, but broken: {reason}", fix=library.fix)
    if library.tells_state:
        told, detail, fix = json.loads(_last_line(answer.stdout))
        return Finding(name=library.name, state=told, detail=detail, fix=fix)
    return Finding(name=library.name, state="ok", detail=_last_line(answer.stdout))


def _gaps(findings: list[Finding]) -> list[Finding]:
    """What is missing only in view of the rest."""
    by_name = {finding.name: finding for finding in findings}
    gaps = []
    if all(by_name[name].state != "ok" for name in _BACKENDS):
        detail = f"none of {', '.join(_BACKENDS)} works; nothing can run"
        gaps.append(Finding(name="backend", state="error", detail=detail, fix="pip install 'basnet-deploy[cpu]'"))
    session = by_name["onnxruntime"]
    if by_name["gpu"].state == session.state == "ok" and "CUDAExecutionProvider" not in session.detail:
        fix = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        gaps.append(Finding(name="gpu in onnxruntime", state="missing", detail="no CUDA provider", fix=fix))
    return gaps


def _conflicts(installed: Callable[[str], str | None] = installed_version) -> list[Finding]:
    """Packages that overwrite each other's files."""
    findings = []
    both = [package for package in ("onnxruntime", "onnxruntime-gpu") if installed(package)]
    if len(both) == 2:
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        detail = "both are installed and overwrite each other; GPU providers go missing"
        findings.append(Finding(name=" + ".join(both), state="error", detail=detail, fix=fix))
    opencv = [package for package in _LIBRARIES[2].packages if installed(package)]
    if len(opencv) > 1:
        fix = f"pip uninstall -y {' '.join(opencv)} && pip install opencv-python-headless"
        detail = "they overwrite each other"
        findings.append(Finding(name=" + ".join(opencv), state="error", detail=detail, fix=fix))
    return findings


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,  # noqa: FBT002
) -> None:
    """Check what this machine can run, and say how to fix it; exit code 1 on errors."""
    with exit_on_error():
        findings = examine()
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2) if as_json else _table(findings))
    raise SystemExit(any(finding.state == "error" for finding in findings))


def _table(findings: list[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8}{finding.name:<{width}}  {finding.detail}")
        if finding.fix:
            lines.append(f"{'':<{width + 8}}  -> {finding.fix}")
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    app()
