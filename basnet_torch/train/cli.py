"""`basnet-train`: trains, resumes, validates.

basnet-train --data DUTS-TR --val DUTS-TE --run runs/first --width 16 --size 128
basnet-train --data DUTS-TR --val DUTS-TE --run runs/first --resume
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from basnet_torch.console import progress_bar
from basnet_torch.data.options import MaskValues, OnBadPair
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, CheckpointError, UsageError, exit_on_error
from basnet_torch.model.structure import RESNET34
from basnet_torch.options import build, option, takes
from basnet_torch.train.config import PRESETS, Autocast, TrainConfig

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint
    from basnet_torch.model.basnet import SaliencyNetwork
    from basnet_torch.train.distributed import World
    from basnet_torch.train.trainer import Trainer
    from basnet_torch.train.validate import Validator

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_REFINE_WIDTH = 16  # of the refinement module on an encoder of five stages
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Which pairs to read and how, where to compute, and what to write."""

    data: tuple[Path, ...] = field(
        metadata=option("Folder, zip file, or folder of zip files with training pairs.", "--data")
    )
    run: Path = field(metadata=option("Directory for checkpoints and logs.", "--run", "--run-dir"))
    val: tuple[Path, ...] = field(default=(), metadata=option("Pairs for validation.", "--val"))
    resume: bool = field(default=False, metadata=option("Resume from RUN/last.pth.", "--resume"))
    on_bad_pair: OnBadPair = field(
        default="refuse", metadata=option("Pairs that lack a file, cannot be read, or differ in size.")
    )
    mask_values: MaskValues = field(
        default="auto",
        metadata=option(
            "Values of masks: gray; labels (not 0 is object, 255 left out); trimap (1, 2, 3); auto: gray alone."
        ),
    )
    device: Device = field(
        default=CPU,
        metadata=option(
            "cpu, cuda or cuda:N.",
            parse=partial(Device.parse, of=("cpu", "cuda"), rule="it must be cpu, cuda or cuda:N"),
        ),
    )
    threads: int = field(
        default=0, metadata=option("Compute threads on the CPU; 0 takes every core this process may use.", min=0)
    )
    tensorboard: bool = field(default=False, metadata=option("Write TensorBoard's files too.", "--tensorboard"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """The weights to begin with, and what the network and its configuration follow from."""

    init: Path | None = field(
        default=None,
        metadata=option(
            "Start from this checkpoint's weights, network and scale; --width may be a multiple of its own."
        ),
    )
    widen_noise: float = field(
        default=0.01, metadata=option("Noise that tells a widened checkpoint's channels apart, as a share.", min=0)
    )
    resnet34: Path | None = field(default=None, metadata=option("Start encoder stages 1-4 from this ResNet-34."))
    encoder_weights: str = field(
        default="auto",
        metadata=option(
            "Weights that the encoder starts from; auto: the installed package's, or timm's own download.",
            metavar="auto|none|FILE",
        ),
    )
    preset: Literal["none", "authors"] = field(
        default="none", metadata=option("authors: the paper's hyper-parameters; what is typed still holds.")
    )
    refine: bool = field(default=True, metadata=option("Keep BASNet's refinement module."))


@app.command()
@takes(_Run, _Start, TrainConfig)
def train(context: typer.Context, **given: Any) -> None:
    """Train on pairs of picture and mask; write best.pth and log.jsonl into RUN."""
    values = {one.name: given[one.name] for one in fields(TrainConfig)}
    left_out = {name for name in values if getattr(context.get_parameter_source(name), "name", "DEFAULT") == "DEFAULT"}
    typed = {name: value for name, value in values.items() if name not in left_out}
    with exit_on_error():
        job, start = build(_Run, given), build(_Start, given)
        _check_torch(job.device)
        if not start.refine:
            if values["arch"] not in ("basnet", "basnet-coarse"):
                what = f"{values['arch']} has no refinement module"
                raise UsageError(f"--no-refine: {what}; it belongs to --arch basnet")
            typed["arch"] = values["arch"] = "basnet-coarse"
        values |= {**PRESETS.get(start.preset, {}), **typed}
        checkpoint = _checkpoint(start, typed.get("width"), resume=job.resume)
        if values["encoder"] != RESNET34 and "width" not in typed:
            values["width"] = _REFINE_WIDTH
        if checkpoint:
            values |= {
                "width": checkpoint.width,
                **{
                    name: _same(name.replace("_", "-"), getattr(checkpoint, name), typed.get(name))
                    for name in ("arch", "encoder", "decoder_widths")
                },
                "scale": typed.get("scale", checkpoint.preprocess.scale),
            }
        if job.resume:
            values |= {**_saved(job.run), **typed}
        _train(values, job, start, checkpoint)


def _train(values: dict[str, Any], job: _Run, start: _Start, checkpoint: Checkpoint | None) -> None:
    """Train in this process, which may be one of several that torchrun started."""
    from basnet_torch.train.distributed import world_from_environment

    world = world_from_environment()
    if world.size > 1 and job.device == Device("cuda"):
        job = replace(job, device=Device("cuda", world.local_rank))
    values["autocast"] = _autocast(values["autocast"], job.device)
    config = TrainConfig(**values)
    _refuse_used_run(job.run, resume=job.resume)
    with world.joined(job.device):
        world.wait()  # until all have looked at the run, before the first writes to it
        trainer = _trainer(config, job, None if job.resume else _initial(config, start, checkpoint), world)
        if job.resume:
            for line in trainer.resume(job.run / "last.pth"):
                typer.echo(line, err=True)
        _follow(trainer)
    world.leave()


def _same(option: str, found: Value, asked: Value | None) -> Value:
    if asked is not None and asked != found:
        raise UsageError(
            f"--init: holds {option} {found}, not {asked}; leave --{option} out or give a checkpoint of it"
        )
    return found


def _check_torch(device: Device) -> None:
    """Check torch and the device, before minutes go into reading data."""
    if find_spec("torch") is None:
        raise BackendUnavailable("training needs torch; pip install 'basnet-deploy[train]'")
    import torch

    if device != CPU and device.number >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} CUDA devices"
        raise BackendUnavailable(f"device {device}: torch {torch.__version__} sees {seen}; use --device cpu")


def _autocast(asked: Literal["auto", "fp32", "bf16", "fp16"], device: Device) -> Autocast:
    """What to compute in; bfloat16 that a CPU has to emulate is ten times slower than FP32, so it is refused."""
    if asked == "fp16":
        if device == CPU:
            raise BackendUnavailable("autocast fp16: CPUs train in bf16 or fp32; use --autocast auto, or CUDA")
        return asked
    if asked == "fp32" or _has_bf16(device):
        return "fp32" if asked == "fp32" else "bf16"
    if asked == "bf16":
        raise BackendUnavailable(f"autocast bf16: torch names no bfloat16 arithmetic of {device}; use --autocast fp32")
    typer.echo(f"autocast fp32: torch names no bfloat16 arithmetic of {device}", err=True)
    return "fp32"


def _has_bf16(device: Device) -> bool:
    import torch

    if device != CPU:
        return torch.cuda.get_device_capability(device.for_torch()) >= (8, 0)  # from Ampere on
    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _refuse_used_run(run: Path, *, resume: bool) -> None:
    """A finished or begun run is never overwritten."""
    last = run / "last.pth"
    if last.exists() and not resume:
        raise UsageError(f"{run}: holds a run already; add --resume to continue it, or name another --run")
    if resume and not last.exists():
        raise UsageError(f"{last}: no such file to resume from; leave --resume out to begin")


def _saved(run: Path) -> dict[str, Any]:
    """The configuration that a run was begun with; what is not typed again stays as it was."""
    from basnet_torch.checkpoint import read_file

    path = run / "last.pth"
    if not path.exists():
        return {}  # which is said in a moment
    saved = read_file(path).get("resume")
    if not isinstance(saved, Mapping) or not isinstance(saved.get("config"), Mapping):
        raise CheckpointError(f"{path}: holds weights only; start from it with --init")
    config = TrainConfig.read(saved["config"])
    return {one.name: getattr(config, one.name) for one in fields(TrainConfig)}


def _checkpoint(start: _Start, width: int | None, *, resume: bool) -> Checkpoint | None:
    """The checkpoint of --init, when one is asked for, made as wide as asked."""
    from basnet_torch.checkpoint import load_checkpoint
    from basnet_torch.train.widen import widened

    if resume and (start.init or start.resnet34):
        raise UsageError("--resume continues with the run's own weights; leave --init and --resnet34 out")
    if start.init and start.resnet34:
        raise UsageError("--init and --resnet34 both give the encoder's weights; keep one of them")
    if start.init is None:
        return None
    found = load_checkpoint(start.init)
    return widened(found, width or found.width, noise=start.widen_noise)


def _initial(config: TrainConfig, start: _Start, checkpoint: Checkpoint | None) -> SaliencyNetwork | None:
    """The network to start from, when one is asked for."""
    import torch

    from basnet_torch.checkpoint import model_from_checkpoint
    from basnet_torch.train.pretrained import load_encoder_weights, load_resnet34
    from basnet_torch.train.trainer import network_from_config

    if checkpoint:
        return model_from_checkpoint(checkpoint).train()
    torch.manual_seed(config.seed)
    if start.resnet34:
        model = network_from_config(config)
        load_resnet34(model, start.resnet34)
        return model
    if config.encoder == RESNET34:
        if start.encoder_weights not in ("auto", "none"):
            raise UsageError("encoder-weights: weights of resnet34 are given with --resnet34 FILE")
        return None
    model = network_from_config(config)
    typer.echo(load_encoder_weights(model, start.encoder_weights), err=True)
    return model


def _trainer(config: TrainConfig, job: _Run, init: SaliencyNetwork | None, world: World) -> Trainer:
    import torch

    from basnet_torch.data.datasets import DataReport, find_pairs, load_pairs
    from basnet_torch.train.trainer import Trainer, refuse_single_values

    refuse_single_values(config)  # before minutes go into reading data
    torch.set_num_threads(_threads(job.threads, world))
    report = DataReport()
    pairs = find_pairs(job.data, on_bad=job.on_bad_pair, report=report)
    _refuse_too_few(config, len(pairs))
    try:
        job.run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{job.run}: cannot be made a folder ({error.strerror}); name another --run") from error
    with progress_bar(shown=world.is_first) as progress:
        task = progress.add_task("reading pairs", total=len(pairs))

        def show(done: int) -> None:
            progress.update(task, completed=done)

        store = load_pairs(
            pairs, config.store_size, show, on_bad=job.on_bad_pair, values=job.mask_values, report=report
        )
    _refuse_too_few(config, len(store))
    for line in report.lines() if world.is_first else ():
        typer.echo(f"data: {line}", err=True)
    facts = {
        "sources": [str(s) for s in job.data],
        "validation": [str(s) for s in job.val],
        "mask_values": job.mask_values,
        "report": report.counts(),
    }
    return Trainer(
        config,
        store,
        job.run,
        validator=_validator(config, job) if job.val and world.is_first else None,
        device=job.device.for_torch(),
        init=init,
        world=world,
        tensorboard=job.tensorboard,
        facts=facts,
    )


def _threads(asked: int, world: World) -> int:
    """Of this process; more than there are cores only wait for each other."""
    cores = len(os.sched_getaffinity(0))
    if asked > cores:
        raise UsageError(f"threads is {asked}, but this process may use {cores} cores; leave --threads out for all")
    return asked or max(1, cores // world.local_size)


def _refuse_too_few(config: TrainConfig, pairs: int) -> None:
    if pairs < config.batch:
        raise UsageError(f"batch is {config.batch}, but there are {pairs} pairs; lower --batch")


def _validator(config: TrainConfig, job: _Run) -> Validator:
    from basnet_torch.data.datasets import DataReport, find_pairs
    from basnet_torch.train.trainer import processing_of
    from basnet_torch.train.validate import Validator

    report = DataReport()
    pairs = find_pairs(job.val, on_bad=job.on_bad_pair, report=report)
    validator = Validator(pairs, *processing_of(config), on_bad=job.on_bad_pair, values=job.mask_values, report=report)
    for line in report.lines():
        typer.echo(f"validation: {line}", err=True)
    return validator


def _follow(trainer: Trainer) -> None:
    """Run to the end behind a progress bar; the last line on stdout is JSON.

    Ctrl-C and a scheduler's SIGTERM end training after the step in hand, so that it resumes exactly; a second Ctrl-C
    ends it at once, with what was saved before.
    """

    def stop(number: int, _: object) -> None:
        trainer.stop()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with progress_bar(shown=trainer.world.is_first) as progress:
        task = progress.add_task("training", total=trainer.config.steps, completed=trainer.step)
        for result in trainer.fit():
            best = f"{trainer.best:.4f}" if trainer.best is not None else "-"
            line = f"loss {result.loss:6.3f}  lr {result.lr:.1e}  best maxF {best}"
            progress.update(task, completed=result.step, description=line)
    if trainer.stopping:
        raise KeyboardInterrupt
    if trainer.world.is_first:
        typer.echo(json.dumps({"run": str(trainer.run), "step": trainer.step, "best_max_f": trainer.best}))


def main() -> None:
    """Entry point."""
    app()
