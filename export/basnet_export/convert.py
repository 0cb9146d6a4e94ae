"""Convert checkpoints: parameter names, file format, storage precision.

path = convert_checkpoint(Path("best.pth"), Path("basnet-lite.safetensors"), store="fp16")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from basnet_export.config import refuse_unfit
from basnet_torch.errors import BackendUnavailable, UsageError
from basnet_torch.files import atomic_write
from basnet_torch.model.structure import RESNET34, named

if TYPE_CHECKING:
    from basnet_torch.checkpoint import Checkpoint

__all__ = ["Layout", "convert_checkpoint"]

Layout = Literal["ours", "authors"]


def convert_checkpoint(
    source: Path,
    target: Path,
    *,
    layout: Layout = "ours",
    store: Literal["fp32", "fp16"] = "fp32",
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a checkpoint in another form; return `target`.

    Args:
        source: `.pth`, `.pt` or `.safetensors`.
        target: `.pth` or `.safetensors`; the authors' layout is a plain `.pth`, whose recipe their code knows.
        layout: Whose parameter names are written.
        store: How floating-point tensors are stored; they are read back as FP32.
        size: Network input height and width to keep with the weights; None keeps the checkpoint's own.
        overwrite: Replace an existing file.
        tell: Called with what the authors' layout, which holds weights alone, loses.

    Raises:
        BackendUnavailable: torch is not installed.
        CheckpointError: The source cannot be read.
        UsageError: The target exists, or cannot hold what is asked.
    """
    plain = (target.suffix, store) == (".pth", "fp32")
    if target.suffix not in (".pth", ".safetensors") or (layout == "authors" and not plain):
        raise UsageError(f"{target}: write .pth or .safetensors; the authors' layout is a .pth in fp32")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists already; --overwrite replaces it")
    try:
        import torch
    except ImportError as error:
        raise BackendUnavailable("converting needs torch; pip install 'basnet-deploy[export]'") from error
    from basnet_torch.checkpoint import load_checkpoint, save_authors_checkpoint, save_checkpoint

    refuse_unfit(size)
    if size is not None and layout == "authors":
        raise UsageError("the authors' layout keeps no size; leave --size out")
    checkpoint = load_checkpoint(source)
    if layout == "authors" and checkpoint.arch != "basnet":
        raise UsageError(f"{source}: is {named(checkpoint.arch)}; the authors' layout has names for BASNet alone")
    if layout == "authors" and checkpoint.encoder != RESNET34:
        raise UsageError(f"{source}: is on {checkpoint.encoder}; the authors' layout has names for {RESNET34} alone")
    if size is not None:
        preprocess = replace(checkpoint.preprocess, height=size[0], width=size[1])
        checkpoint = replace(checkpoint, preprocess=preprocess)
    if layout == "authors" and (lost := _lost(checkpoint)):
        tell(f"warning: the authors' layout holds weights alone; who reads {target} gets other masks: {lost}")
    with atomic_write(target, overwrite=overwrite) as beside:
        if layout == "authors":
            save_authors_checkpoint(beside, checkpoint.state)
        else:
            save_checkpoint(beside, checkpoint, dtype=torch.float16 if store == "fp16" else torch.float32)
    return target


def _lost(checkpoint: Checkpoint) -> str:
    """List the values of the recipe that the authors' layout loses."""
    from basnet_torch.checkpoint import AUTHORS_RECIPE

    preprocess, postprocess = AUTHORS_RECIPE
    mine = asdict(checkpoint.preprocess) | asdict(checkpoint.postprocess)
    theirs = asdict(preprocess) | asdict(postprocess)
    return ", ".join(f"{name} {mine[name]} becomes {theirs[name]}" for name in mine if mine[name] != theirs[name])
