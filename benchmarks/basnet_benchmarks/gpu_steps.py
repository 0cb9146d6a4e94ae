"""What there is to prove on a CUDA device, step by step: each is a command of its own, described and not yet run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from basnet_torch.errors import UsageError

__all__ = ["WIDE", "GpuConfig", "Step", "steps_of"]

WIDE = "width64"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuConfig:
    """What to prove.

    Attributes:
        output: Folder of the reports; it must not exist yet.
        plans: Folder of the engines, which are found again there; None keeps none.
        checkpoint: Trained weights of width 64; None times random ones, whose masks prove nothing.
        pictures: Folder of pictures, or data set, to show parity on; None takes five photographs.
        calibration: Folder of pictures that INT8 is calibrated on; without it there are no INT8 engines.
        only: Steps to run, by the beginnings of their names; empty runs all.
        quick: Few rounds of tiny networks: tries the script itself.
    """

    output: Path
    plans: Path | None = None
    checkpoint: Path | None = None
    pictures: Path | None = None
    calibration: Path | None = None
    only: tuple[str, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        if self.output.exists():
            raise UsageError(f"output {self.output}: exists already; name a folder that does not")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command.

    Attributes:
        name: Of the step and of its report.
        tool: Which command.
        arguments: Its arguments.
        writes: The file it leaves; a report where it ends in `.json`.
        on_gpu: Whether it needs a CUDA device.
        needs: Files of earlier steps, without which it cannot run.
        blocked: Why it cannot run at all; empty where it can.
    """

    name: str
    tool: Literal["bench", "export", "pytest"]
    arguments: tuple[str, ...]
    writes: Path | None = None
    on_gpu: bool = False
    needs: tuple[Path, ...] = ()
    blocked: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Engine:
    """One plan to build."""

    model: str
    source: Path
    graph: str
    precision: str
    plan: Path = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.graph}-{self.precision}"


def steps_of(config: GpuConfig, work: Path, models: Mapping[str, Path], clips: Mapping[str, Path]) -> list[Step]:
    """Every step in order. `models`: checkpoints by name; `clips`: videos by name."""
    plans = config.plans or work
    engines = [
        _Engine(model=name, source=path, graph=graph, precision=p, plan=plans / f"{name}-{graph}-{p}.plan")
        for name, path in models.items()
        for graph in ("tensor", "frame")
        for p in ("fp16", "int8")
    ]
    steps = [
        _bench("latency-cpu", config, "latency", *map(str, models.values()), *_rounds(config)),
        _bench("parity-cpu", config, "parity", str(models["lite"])),
        _bench("video-cpu", config, "video", str(clips["720p"]), "--runs", "1"),
        *(_engine_step(engine, config) for engine in engines),
        _gpu_tests(config),
        *_latency_steps(config, models, engines),
        *_parity_steps(config, models, engines),
        *_video_steps(config, engines, clips),
    ]
    unknown = [only for only in config.only if not any(step.name.startswith(only) for step in steps)]
    if unknown:
        names = ", ".join(step.name for step in steps)
        raise UsageError(f"only {', '.join(unknown)}: no step's name begins so; there are {names}")
    return [step for step in steps if not config.only or step.name.startswith(config.only)]


def _bench(name: str, config: GpuConfig, *arguments: str, **more: Any) -> Step:
    path = config.output / f"{name}.json"
    return Step(name=name, tool="bench", arguments=(*arguments, "--output", str(path)), writes=path, **more)


def _rounds(config: GpuConfig) -> tuple[str, ...]:
    return ("--rounds", "2", "--calls", "1", "--warm-up", "1") if config.quick else ("--rounds", "10")


def _engine_step(engine: _Engine, config: GpuConfig) -> Step:
    sizes = ("--height", "32,720,2160", "--width", "32,1280,3840") if engine.graph == "frame" else ()
    proof = ("--pictures", str(config.pictures)) if config.pictures else ()
    # Random weights give a flat map, on which nothing can be shown.
    checks = proof if engine.model != WIDE or config.checkpoint else ("--no-check",)
    ranges = ("--calibration", str(config.calibration)) if engine.precision == "int8" and config.calibration else ()
    return Step(
        name=f"engine-{engine.name}",
        tool="export",
        arguments=(
            *("engine", str(engine.source), "--graph", engine.graph, "--precision", engine.precision),
            *("--batch", "1,8,32", *sizes, *checks, *ranges, "--overwrite", "--output", str(engine.plan)),
        ),
        writes=engine.plan,
        blocked="" if engine.precision != "int8" or ranges else "no pictures to calibrate on; give --calibration",
    )


def _gpu_tests(config: GpuConfig) -> Step:
    path = config.output / "tests-gpu.xml"
    return Step(
        name="tests-gpu",
        tool="pytest",
        arguments=("-q", "-m", "gpu", f"--junitxml={path}"),
        writes=path,
        on_gpu=True,
    )


def _latency_steps(config: GpuConfig, models: Mapping[str, Path], engines: Sequence[_Engine]) -> Iterator[Step]:
    """A network, PyTorch in its ways, ONNX Runtime and the engines in one run, so that their ratios are of one run."""
    batches = "1" if config.quick else "1,8,32"
    for model, path in models.items():
        for graph in ("tensor", "frame"):
            plans = [engine.plan for engine in engines if (engine.model, engine.graph) == (model, graph)]
            yield _bench(
                f"latency-{model}-{graph}",
                config,
                *("latency", str(path), *map(str, plans), "--device", "cuda", "--batch", batches, *_rounds(config)),
                on_gpu=True,
                needs=tuple(plans),
            )


def _parity_steps(config: GpuConfig, models: Mapping[str, Path], engines: Sequence[_Engine]) -> Iterator[Step]:
    where = ("--pictures", str(config.pictures)) if config.pictures else ()
    for model, path in models.items():
        plans = [engine.plan for engine in engines if engine.model == model]
        flat = model == WIDE and not config.checkpoint
        yield _bench(
            f"parity-{model}",
            config,
            *("parity", str(path), *map(str, plans), "--device", "cuda", *where),
            on_gpu=True,
            needs=tuple(plans),
            blocked="random weights give a flat map, on which nothing can be shown; give --checkpoint" if flat else "",
        )


def _video_steps(config: GpuConfig, engines: Sequence[_Engine], clips: Mapping[str, Path]) -> Iterator[Step]:
    for engine in (each for each in engines if each.precision == "fp16"):
        for clip, path in clips.items():
            yield _bench(
                f"video-{engine.name}-{clip}",
                config,
                *("video", str(path), "--engine", str(engine.plan), "--batch", "8", "--device", "cuda"),
                on_gpu=True,
                needs=(engine.plan,),
            )
