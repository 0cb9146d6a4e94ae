"""Everything there is to prove on a CUDA device, in one go: engines built, tests, latency, parity, video, memory.

    failed = run_gpu_report(GpuConfig(output=Path("benchmarks/reports/gpu")))

Each step runs in a process of its own, so that one that fails, or a library that is not there, costs only its own
results. On a machine without a device the steps that need none run, and the others read "not proven".
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from basnet_benchmarks.gpu_bars import Bar, bars_of
from basnet_benchmarks.gpu_steps import WIDE, GpuConfig, Step, steps_of
from basnet_runtime.console import say
from basnet_torch.errors import BackendUnavailable

__all__ = ["GpuReport", "StepResult", "default_output", "run_gpu_report", "run_steps"]

State = Literal["done", "not proven", "failed"]
_TOOLS = {
    "bench": ("-c", "from basnet_benchmarks.cli import main; main()"),
    "export": ("-c", "from basnet_export.cli import main; main()"),
    "pytest": ("-m", "pytest"),
}
_VIDEOS = {"720p": (1280, 720), "2160p": (3840, 2160)}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What became of a step: `reason` says why it is not proven or how it failed."""

    name: str
    state: State
    reason: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "state": self.state, "reason": self.reason, "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuReport:
    """All steps and claims."""

    environment: Any
    gpu: str
    steps: tuple[StepResult, ...]
    bars: tuple[Bar, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "gpu",
            "gpu": self.gpu,
            "environment": self.environment.to_dict(),
            "bars": [bar.to_dict() for bar in self.bars],
            "steps": [step.to_dict() for step in self.steps],
        }


def run_steps(steps: Iterable[Step], no_gpu: str, ways: Sequence[tuple[str, ...]] = ((),)) -> Iterator[StepResult]:
    """Run what can be run.

    Args:
        steps: In this order.
        no_gpu: Why there is no CUDA device; empty where there is one.
        ways: Options of engine builds; the first that works for an engine is kept for those that follow.
    """
    for step in steps:
        found = _why_not(step, no_gpu)
        if found is None:
            say(f"running: {step.name}")
            for way in ways if step.tool == "export" else ((),):
                found = _run(step, way)
                if found.state == "done":
                    ways = (way,) if step.tool == "export" else ways
                    break
        assert found is not None  # noqa: S101 - there is always a way
        say(f"{found.state}: {found.name}{f' ({found.reason})' if found.reason else ''}")
        yield found


def _why_not(step: Step, no_gpu: str) -> StepResult | None:
    reason = step.blocked or (no_gpu if step.on_gpu else "")
    if not reason and step.needs and not any(path.exists() for path in step.needs):
        reason = "no engine was built"
    return StepResult(name=step.name, state="not proven", reason=reason) if reason else None


def _run(step: Step, way: tuple[str, ...]) -> StepResult:
    absent = {str(path) for path in step.needs if not path.exists()}
    arguments = [argument for argument in (*step.arguments, *way) if argument not in absent]
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own commands
        [sys.executable, *_TOOLS[step.tool], *arguments], capture_output=True, text=True, check=False
    )
    states: dict[int, State] = {0: "done", 3: "not proven"}
    return StepResult(
        name=step.name,
        state=states.get(done.returncode, "failed"),
        reason=_last_line(done.stderr or done.stdout) if done.returncode else "",
        seconds=round(time.perf_counter() - began, 1),
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _gpu() -> tuple[str, str]:
    """The device's name and why there is none."""
    from basnet_runtime.cuda.devices import find_gpu

    try:
        found = find_gpu()
    except BackendUnavailable as error:
        return "", str(error)
    return (found.name, "") if found else ("", "this machine has no NVIDIA driver")


def default_output() -> Path:
    """A folder under benchmarks/reports, named after the device and the time."""
    name = "-".join((_gpu()[0] or "no gpu").lower().split())
    return Path("benchmarks") / "reports" / f"gpu-{name}-{datetime.now(UTC):%Y-%m-%d-%H%M}"


def _ways(no_gpu: str) -> tuple[tuple[str, ...], ...]:
    """How an engine for this device may be built, the likeliest first.

    TensorRT for RTX builds by default for the capabilities that its documentation lists, 8.0, 8.6, 8.9, 12.0 and later;
    for one that it cannot name it may build on the device itself.
    """
    from basnet_runtime.cuda.devices import find_gpu
    from basnet_runtime.tensorrt_library import open_tensorrt

    try:
        library = open_tensorrt("auto")
        gpu = None if no_gpu else find_gpu()
    except BackendUnavailable:
        return ((),)
    if gpu is None or library.flavor != "rtx":
        return ((),)
    here = ("--flavor", "rtx", "--compute-capability", "current")
    named = "SM" + gpu.compute_capability.replace(".", "") in library.trt.ComputeCapability.__members__
    return ((), here) if named else (here, ())


def run_gpu_report(config: GpuConfig) -> bool:
    """Run all and write JSON, Markdown and HTML into `config.output`; whether a step failed."""
    from basnet_benchmarks.environment import environment
    from basnet_benchmarks.report import save, save_all

    gpu, no_gpu = _gpu()
    config.output.mkdir(parents=True)
    with TemporaryDirectory(prefix="basnet-gpu-") as folder:
        work = Path(folder)
        models, clips = _models(config, work), _clips(config, work)
        steps = steps_of(config, work, models, clips)
        results = tuple(run_steps(steps, no_gpu, _ways(no_gpu)))
        _keep_manifests(steps, config.output)
    files = [step.writes for step in steps if step.writes and step.writes.suffix == ".json" and step.writes.exists()]
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    summary = GpuReport(environment=environment(None), gpu=gpu, steps=results, bars=bars_of(reports))
    save(summary, config.output / "gpu.json", overwrite=True)
    together = [config.output / "gpu.json", *files]
    save_all(together, config.output / "report.md", overwrite=True)
    try:
        save_all(together, config.output / "report.html", overwrite=True)
    except BackendUnavailable as error:
        say(f"report.html is not written: {error}")
    say(f"report: {config.output}")
    return any(result.state == "failed" for result in results)


def _keep_manifests(steps: Iterable[Step], output: Path) -> None:
    """What each engine is, without the engine: how it was built, its share of the precision, its parity receipt."""
    from basnet_runtime.manifest import manifest_path

    for step in steps:
        beside = manifest_path(step.writes) if step.tool == "export" and step.writes else None
        if beside is not None and beside.exists():
            (output / beside.name).write_text(beside.read_text(encoding="utf-8"), encoding="utf-8")


def _models(config: GpuConfig, work: Path) -> dict[str, Path]:
    """Checkpoints by name: the built-in model, and one of the paper's width."""
    from basnet_benchmarks.candidates import ModelSource
    from basnet_runtime.open import BUILTIN

    lite = BUILTIN.with_suffix(".safetensors")
    if config.checkpoint:
        return {"lite": lite, WIDE: config.checkpoint}
    wide = ModelSource("random:4" if config.quick else "random:64", work).checkpoint
    assert wide is not None  # noqa: S101 - a random network is a checkpoint
    return {"lite": lite, WIDE: wide}


def _clips(config: GpuConfig, work: Path) -> dict[str, Path]:
    frames = 8 if config.quick else 240
    return {name: _drawn_clip(work / f"{name}.mp4", *size, frames) for name, size in _VIDEOS.items()}


def _drawn_clip(path: Path, width: int, height: int, frames: int) -> Path:
    """A bundled photograph that moves: real content of any size, which needs no file from elsewhere."""
    import av
    import cv2
    import numpy as np

    from basnet_export.samples import load_pictures

    picture = cv2.resize(load_pictures(None)[0].image_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            moved = np.roll(picture, 4 * index, axis=1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode(None))
    return path
