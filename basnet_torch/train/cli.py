"""`basnet-train`: trains, resumes, validates.

basnet-train --data DUTS-TR --val DUTS-TE --run runs/first --width 16 --size 128
basnet-train --data DUTS-TR --val DUTS-TE --run runs/first --resume
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from basnet_torch.console import progress_bar
from basnet_torch.data.options import MaskValues, OnBadPair
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, CheckpointError, UsageError, exit_on_error
from basnet_torch.model.structure import RESNET34, Arch
from basnet_torch.spec import Scale
from basnet_torch.train.config import PRESETS, Augmentation, Autocast, Compiler, Loss, Optimizer, Schedule, TrainConfig

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint
    from basnet_torch.model.basnet import SaliencyNetwork
    from basnet_torch.train.distributed import World
    from basnet_torch.train.trainer import StepResult, Trainer
    from basnet_torch.train.validate import Validator

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_DEFAULT = TrainConfig()
_REFINE_WIDTH = 16  # of the refinement module on an encoder of five stages
Value = TypeVar("Value")
Data = Annotated[
    list[Path], typer.Option("--data", help="Folder, zip file, or folder of zip files with training pairs.")
]
Validation = Annotated[list[Path] | None, typer.Option("--val", help="Pairs for validation.")]
Run = Annotated[Path, typer.Option("--run", "--run-dir", help="Directory for checkpoints and logs.")]


@app.command()
def train(
    context: typer.Context,
    data: Data,
    run: Run,
    val: Validation = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from RUN/last.pth.")] = False,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from this checkpoint's weights, network and scale; --width may be a multiple of its own."
        ),
    ] = None,
    widen_noise: Annotated[
        float, typer.Option(min=0, help="Noise that tells a widened checkpoint's channels apart, as a share.")
    ] = 0.01,
    resnet34: Annotated[Path | None, typer.Option(help="Start encoder stages 1-4 from this ResNet-34.")] = None,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Encoder: resnet34 (the paper's), efficientnet-lite0, -lite1, -lite2, or timm:NAME.",
        ),
    ] = _DEFAULT.encoder,
    encoder_weights: Annotated[
        str,
        typer.Option(
            metavar="auto|none|FILE",
            help="Weights that the encoder starts from; auto: the installed package's, or timm's own download.",
        ),
    ] = "auto",
    decoder_widths: Annotated[
        tuple[int, int, int, int, int],
        typer.Option(help="Channels of the decoder's stages, coarse to fine; not of resnet34."),
    ] = _DEFAULT.decoder_widths,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=0, help="Compute threads on the CPU; 0 takes every core this process may use.")
    ] = 0,
    arch: Annotated[Arch, typer.Option(help="Network: BASNet, or a baseline of about its size.")] = _DEFAULT.arch,
    refine: Annotated[bool, typer.Option(help="Keep BASNet's refinement module.")] = True,
    loss: Annotated[Loss, typer.Option(help="Loss terms, added on every map.")] = _DEFAULT.loss,
    width: Annotated[
        int,
        typer.Option(
            help="Channels at full resolution; 64 is the paper's network. Other encoders: the refinement module's, "
            "16 when left out."
        ),
    ] = _DEFAULT.width,
    scale: Annotated[
        Scale, typer.Option(help="Pictures are divided by 255 or by their own largest value.")
    ] = _DEFAULT.scale,
    size: Annotated[int, typer.Option(help="Side of the training crop, pixels.")] = _DEFAULT.size,
    eval_size: Annotated[int, typer.Option(help="Side in validation, kept with the weights.")] = _DEFAULT.eval_size,
    store_size: Annotated[int, typer.Option(help="Side of the pictures in memory, pixels.")] = _DEFAULT.store_size,
    augment: Annotated[
        Augmentation,
        typer.Option(
            help="crop: crop and flip; strong: also color, blur, JPEG, crops beyond the edge; authors: theirs."
        ),
    ] = _DEFAULT.augment,
    crop_scale: Annotated[tuple[float, float], typer.Option(help="Crop side as share.")] = _DEFAULT.crop_scale,
    crop_stretch: Annotated[float, typer.Option(help="Largest ratio of a crop's sides.")] = _DEFAULT.crop_stretch,
    flip: Annotated[float, typer.Option(help="Probability of a horizontal flip.")] = _DEFAULT.flip,
    batch: Annotated[int, typer.Option(help="Pictures a step, over all processes.")] = _DEFAULT.batch,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a step is computed in, to need less memory.")
    ] = _DEFAULT.accumulate,
    steps: Annotated[int, typer.Option(help="Steps in all.")] = _DEFAULT.steps,
    optimizer: Annotated[Optimizer, typer.Option(help="Optimizer.")] = _DEFAULT.optimizer,
    momentum: Annotated[float, typer.Option(help="Of sgd and rmsprop.")] = _DEFAULT.momentum,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = _DEFAULT.lr,
    encoder_lr: Annotated[float, typer.Option(help="Learning rate of the encoder, as a share.")] = _DEFAULT.encoder_lr,
    layer_decay: Annotated[
        float, typer.Option(help="Factor on that from each encoder stage to the one before.")
    ] = _DEFAULT.layer_decay,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = _DEFAULT.weight_decay,
    teacher: Annotated[str, typer.Option(help="Checkpoint whose masks are learned too.")] = _DEFAULT.teacher,
    distill: Annotated[float, typer.Option(help="Share of the teacher in the loss.")] = _DEFAULT.distill,
    schedule: Annotated[Schedule, typer.Option(help="Learning rate after the warm-up.")] = _DEFAULT.schedule,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = _DEFAULT.warmup,
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0 does not clip.")] = _DEFAULT.clip,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights; 0 keeps none.")] = _DEFAULT.ema,
    autocast: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="Type of the convolutions; auto: bf16 where the device has it; fp16: on CUDA."),
    ] = "auto",
    compiler: Annotated[Compiler, typer.Option("--compile", help="Backend of torch.compile.")] = _DEFAULT.compiler,
    channels_last: Annotated[bool, typer.Option(help="Memory layout.")] = _DEFAULT.channels_last,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = _DEFAULT.seed,
    eval_every: Annotated[int, typer.Option(help="Steps between validations.")] = _DEFAULT.eval_every,
    save_every: Annotated[int, typer.Option(help="Steps between writes of last.pth.")] = _DEFAULT.save_every,
    preset: Annotated[
        Literal["none", "authors"],
        typer.Option(help="authors: the paper's hyper-parameters; what is typed still holds."),
    ] = "none",
    on_bad_pair: Annotated[
        OnBadPair, typer.Option(help="Pairs that lack a file, cannot be read, or differ in size.")
    ] = "refuse",
    mask_values: Annotated[
        MaskValues,
        typer.Option(
            help="Values of masks: gray; labels (not 0 is object, 255 left out); trimap (1, 2, 3); auto: gray alone."
        ),
    ] = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's files too.")] = False,
) -> None:
    """Train on pairs of picture and mask; writes best.pth, last.pth and log.jsonl into RUN."""
    values = {k: v for k, v in dict(locals()).items() if k in TrainConfig.__slots__}
    with exit_on_error():
        typed = {name for name in values if _is_typed(context, name)}
        where = _required(device)
        if not refine:
            values["arch"] = _coarse(arch)
            typed.add("arch")
        values |= {name: value for name, value in PRESETS.get(preset, {}).items() if name not in typed}
        start = _start(init, resnet34, width if "width" in typed else None, widen_noise, resume=resume)
        if encoder != RESNET34 and "width" not in typed:
            values["width"] = _REFINE_WIDTH
        if start:
            values |= {
                "width": start.width,
                "arch": _same("arch", start.arch, values["arch"] if "arch" in typed else None),
                "encoder": _same("encoder", start.encoder, encoder if "encoder" in typed else None),
                "decoder_widths": _same(
                    "decoder-widths", start.decoder_widths, decoder_widths if "decoder_widths" in typed else None
                ),
                "scale": values["scale"] if "scale" in typed else start.preprocess.scale,
            }
        if resume:
            values |= {name: value for name, value in _saved(run).items() if name not in typed}
        source = _Source(data=tuple(data), val=tuple(val or ()), on_bad=on_bad_pair, values=mask_values)
        _run(
            values,
            source,
            _Place(run=run, device=where, threads=threads, tensorboard=tensorboard),
            resume,
            _Start(checkpoint=start, resnet34=resnet34, encoder_weights=encoder_weights),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """Which pairs to read, how, and what to do about bad ones."""

    data: tuple[Path, ...]
    val: tuple[Path, ...]
    on_bad: OnBadPair
    values: MaskValues


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where to compute and what to write."""

    run: Path
    device: Device
    threads: int
    tensorboard: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """The weights to begin with; at most one of them is given."""

    checkpoint: Checkpoint | None
    resnet34: Path | None
    encoder_weights: str


def _run(values: dict[str, Any], source: _Source, place: _Place, resume: bool, start: _Start) -> None:
    """Train in this process, which may be one of several that torchrun started."""
    from basnet_torch.train.distributed import world_from_environment

    world = world_from_environment()
    if world.size > 1 and place.device == Device("cuda"):
        place = replace(place, device=Device("cuda", world.local_rank))
    values["autocast"] = _autocast(values["autocast"], place.device)
    config = TrainConfig(**values)
    _refuse_used_run(place.run, resume=resume)
    with world.joined(place.device):
        world.wait()  # until all have looked at the run, before the first writes to it
        trainer = _trainer(config, source, place, None if resume else _initial(config, start), world)
        if resume:
            for line in trainer.resume(place.run / "last.pth"):
                typer.echo(line, err=True)
        _follow(trainer)
    world.leave()


def _coarse(arch: Arch) -> Arch:
    """The network that `--no-refine` makes of `arch`."""
    if arch not in ("basnet", "basnet-coarse"):
        raise UsageError(f"--no-refine: {arch} has no refinement module; it belongs to --arch basnet")
    return "basnet-coarse"


def _same(option: str, found: Value, asked: Value | None) -> Value:
    if asked is not None and asked != found:
        raise UsageError(
            f"--init: holds {option} {found}, not {asked}; leave --{option} out or give a checkpoint of it"
        )
    return found


def _required(text: str) -> Device:
    """Check torch and the device, before minutes go into reading data."""
    if find_spec("torch") is None:
        raise BackendUnavailable("training needs torch; pip install 'basnet-deploy[train]'")
    import torch

    device = Device.parse(text, of=("cpu", "cuda"), rule="it must be cpu, cuda or cuda:N")
    if device != CPU and device.number >= torch.cuda.device_count():
        seen = f"{torch.cuda.device_count()} CUDA devices"
        raise BackendUnavailable(f"device {device}: torch {torch.__version__} sees {seen}; use --device cpu")
    return device


def _autocast(asked: Literal["auto", "fp32", "bf16", "fp16"], device: Device) -> Autocast:
    """What to compute in; bfloat16 that a processor has to emulate is ten times slower than FP32, so it is refused."""
    if asked == "fp16":
        if device == CPU:
            raise BackendUnavailable("autocast fp16: processors train in bf16 or fp32; use --autocast auto, or CUDA")
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
        raise UsageError(f"{run}: holds a run already; add --resume to go on with it, or name another --run")
    if resume and not last.exists():
        raise UsageError(f"{last}: no such file to resume from; leave --resume out to begin")


def _is_typed(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"


def _saved(run: Path) -> dict[str, Any]:
    """The configuration that a run was begun with; what is not typed again stays as it was.

    Raises:
        CheckpointError: `last.pth` cannot be read or holds none.
    """
    from basnet_torch.checkpoint import read_file

    path = run / "last.pth"
    if not path.exists():
        return {}  # which is said in a moment
    saved = read_file(path).get("resume")
    if not isinstance(saved, Mapping) or not isinstance(saved.get("config"), Mapping):
        raise CheckpointError(f"{path}: holds weights only; start from it with --init")
    config = TrainConfig.read(saved["config"])
    return {name: getattr(config, name) for name in TrainConfig.__slots__}


def _start(
    init: Path | None, resnet34: Path | None, width: int | None, noise: float, *, resume: bool
) -> Checkpoint | None:
    """The checkpoint of --init, when one is asked for, made as wide as asked."""
    from basnet_torch.checkpoint import load_checkpoint
    from basnet_torch.train.widen import widened

    if resume and (init or resnet34):
        raise UsageError("--resume goes on with the run's own weights; leave --init and --resnet34 out")
    if init and resnet34:
        raise UsageError("--init and --resnet34 both give the encoder's weights; keep one of them")
    if init is None:
        return None
    found = load_checkpoint(init)
    return widened(found, width or found.width, noise=noise)


def _initial(config: TrainConfig, start: _Start) -> SaliencyNetwork | None:
    """The network to start from, when one is asked for."""
    import torch

    from basnet_torch.checkpoint import model_from_checkpoint
    from basnet_torch.train.pretrained import load_encoder_weights, load_resnet34
    from basnet_torch.train.trainer import network_from_config

    if start.checkpoint:
        return model_from_checkpoint(start.checkpoint).train()
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


def _trainer(
    config: TrainConfig, source: _Source, place: _Place, init: SaliencyNetwork | None, world: World
) -> Trainer:
    import torch

    from basnet_torch.data.datasets import DataReport, find_pairs, load_pairs
    from basnet_torch.train.trainer import Trainer, refuse_single_values

    refuse_single_values(config)  # before minutes go into reading data
    torch.set_num_threads(_threads(place.threads, world))
    report = DataReport()
    pairs = find_pairs(source.data, on_bad=source.on_bad, report=report)
    _refuse_too_few(config, len(pairs))
    _make_folder(place.run)
    with progress_bar(shown=world.is_first) as progress:
        task = progress.add_task("reading pairs", total=len(pairs))

        def show(done: int) -> None:
            progress.update(task, completed=done)

        store = load_pairs(pairs, config.store_size, show, on_bad=source.on_bad, values=source.values, report=report)
    _refuse_too_few(config, len(store))
    for line in report.lines() if world.is_first else ():
        typer.echo(f"data: {line}", err=True)
    facts = {
        "sources": [str(s) for s in source.data],
        "validation": [str(s) for s in source.val],
        "mask_values": source.values,
        "report": report.counts(),
    }
    return Trainer(
        config,
        store,
        place.run,
        validator=_validator(config, source) if source.val and world.is_first else None,
        device=place.device.for_torch(),
        init=init,
        world=world,
        tensorboard=place.tensorboard,
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


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{run}: cannot be made a folder ({error.strerror}); name another --run") from error


def _validator(config: TrainConfig, source: _Source) -> Validator:
    from basnet_torch.data.datasets import DataReport, find_pairs
    from basnet_torch.train.trainer import finishing
    from basnet_torch.train.validate import Validator

    report = DataReport()
    pairs = find_pairs(source.val, on_bad=source.on_bad, report=report)
    validator = Validator(pairs, *finishing(config), on_bad=source.on_bad, values=source.values, report=report)
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
            progress.update(task, completed=result.step, description=_line(result, best))
    if trainer.stopping:
        raise KeyboardInterrupt
    if trainer.world.is_first:
        typer.echo(json.dumps(_summary(trainer)))


def _line(result: StepResult, best: str) -> str:
    return f"loss {result.loss:6.3f}  lr {result.lr:.1e}  best maxF {best}"


def _summary(trainer: Trainer) -> dict[str, Any]:
    return {"run": str(trainer.run), "step": trainer.step, "best_max_f": trainer.best}


def main() -> None:
    """Entry point."""
    app()
