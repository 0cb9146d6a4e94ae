"""Checkpoint files: ours, the authors' `basnet.pth` in any form, safetensors.

Nothing pickled is ever executed: `.pth` files are read with `weights_only=True`, so a file that holds code is refused.
"""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor

from basnet_torch.console import say
from basnet_torch.errors import CheckpointError
from basnet_torch.files import atomic_write
from basnet_torch.json_values import from_plain, to_plain
from basnet_torch.model.basnet import SaliencyNetwork
from basnet_torch.model.registry import ARCHITECTURES, build_network
from basnet_torch.model.structure import DECODER_WIDTHS, RESNET34, Arch, check_structure, named
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.weights.file_heads import HEAD_BYTES, is_plain_pickle, is_safetensors, is_torch_save, pickle_protocol
from basnet_torch.weights.keymap import authors_from_ours, is_authors_layout, ours_from_authors
from basnet_torch.weights.state_dicts import Weights, named_tensors, weights_in

__all__ = [
    "AUTHORS_RECIPE",
    "FORMAT",
    "Checkpoint",
    "load_checkpoint",
    "model_from_checkpoint",
    "read_file",
    "save_authors_checkpoint",
    "save_checkpoint",
    "tensors_from_file",
]

FORMAT = "basnet-deploy/1"
# Preprocessing and postprocessing of the authors' code: it divides by the largest value, and stretches the map.
AUTHORS_RECIPE = (Preprocess(scale="image_max"), Postprocess(stretch=True))
_FIRST_LAYERS = (ARCHITECTURES["basnet"].first_layer, "inconv")  # of BASNet, in our names and the authors'
_OLDEST_PICKLE_NOT_READ = 4
_say_once = lru_cache(maxsize=256)(say)  # however often one file is read


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Weights with their preprocessing and postprocessing.

    Attributes:
        arch: Which network; files that do not say are BASNet.
        width: Channels at full resolution.
        encoder: Its encoder; files that do not say have the paper's, `resnet34`.
        decoder_widths: Channels of the five decoder stages, on another encoder than `resnet34`.
        state: Our parameter names to tensors, float32.
        preprocess: Preprocessing in training.
        postprocess: Postprocessing of maps.
        origin: Where the weights came from, for people: "basnet-deploy", "authors" or "unknown".
        metadata: Plain values: recipe, scores, data.
    """

    width: int
    state: Mapping[str, Tensor]
    preprocess: Preprocess
    postprocess: Postprocess
    origin: str
    arch: Arch = "basnet"
    encoder: str = RESNET34
    decoder_widths: tuple[int, ...] = DECODER_WIDTHS
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> SaliencyNetwork:
        """Build the network that the weights belong to, freshly initialized."""
        return build_network(self.arch, self.width, encoder=self.encoder, decoder_widths=self.decoder_widths)

    def structure(self) -> dict[str, Any]:
        """Plain values that name the network, for files."""
        return {
            "arch": self.arch,
            "width": self.width,
            "encoder": self.encoder,
            "decoder_widths": list(self.decoder_widths),
        }


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a `.pth`, `.pt` or `.safetensors` file.

    Its tensors are known to fit `checkpoint.build()`.

    Raises:
        CheckpointError: Naming what was found and what to do.
    """
    content = read_file(path)
    ours = _is_ours(path, content)
    state = _state_dict(path, content)
    is_authors = is_authors_layout(state)
    state = ours_from_authors(state) if is_authors else dict(state)
    preprocess, postprocess = (
        _recipe(path, content) if ours else AUTHORS_RECIPE if is_authors else (Preprocess(), Postprocess())
    )
    arch = _arch(path, content) if ours else "basnet"
    encoder, decoder_widths = _encoder(path, content) if ours else (RESNET34, DECODER_WIDTHS)
    found = int(content["width"]) if encoder != RESNET34 else _check_width(path, state, arch)
    checkpoint = Checkpoint(
        arch=arch,
        width=found,
        encoder=encoder,
        decoder_widths=decoder_widths,
        state=state,
        preprocess=preprocess,
        postprocess=postprocess,
        origin=content.get("origin", "basnet-deploy") if ours else ("authors" if is_authors else "unknown"),
        metadata=dict(content.get("metadata") or {}) if ours else {},
    )
    fitted = _fitted(path, state, checkpoint)
    _refuse_not_finite(path, fitted)
    return replace(checkpoint, state=fitted)


def model_from_checkpoint(checkpoint: Checkpoint) -> SaliencyNetwork:
    """The network with the checkpoint's weights, in evaluation mode."""
    with torch.device("meta"):
        model = checkpoint.build()
    model.load_state_dict(dict(checkpoint.state), strict=True, assign=True)
    return model.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> None:
    """Write `.pth` or `.safetensors`, by the path's suffix, in one atomic step.

    `dtype` is the type that floats are stored in.
    """
    state = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype) for k, v in checkpoint.state.items()}
    _refuse_not_finite(path, state)
    content = {
        "format": FORMAT,
        "origin": checkpoint.origin,
        **checkpoint.structure(),
        "preprocess": to_plain(checkpoint.preprocess),
        "postprocess": to_plain(checkpoint.postprocess),
        "metadata": dict(checkpoint.metadata),
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # safetensors metadata is text only and its tensors must be contiguous
        flat = {k: v.contiguous() for k, v in state.items()}
        header = {"basnet": json.dumps(content, sort_keys=True)}
        with atomic_write(path, overwrite=True) as beside:
            save_file(flat, beside, metadata=header)
        return
    with atomic_write(path, overwrite=True) as beside:
        torch.save({**content, "state_dict": state}, beside)


def save_authors_checkpoint(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write our weights as a plain state dict under the authors' names."""
    renamed = authors_from_ours({k: v.detach().cpu() for k, v in state.items()})
    with atomic_write(path, overwrite=True) as beside:
        torch.save(renamed, beside)


def read_file(path: Path) -> dict[str, Any]:
    """The mapping a checkpoint file holds, without running any code in it.

    Raises:
        CheckpointError: For a missing, empty, foreign, truncated or code-carrying file.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the path of a .pth or .safetensors checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .pth or .safetensors checkpoint")
    head = _head(path)
    if is_plain_pickle(head):
        raise CheckpointError(
            f"{path}: is a plain pickle, not a file of torch.save, and pickles are never run here; "
            "where you trust it: torch.save(pickle.load(open(PATH, 'rb')), NEW_PATH)"
        )
    content = _read_safetensors(path) if is_safetensors(head) else _read_torch(path)
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise CheckpointError(f"{path}: holds a {kind}, not a state dict; save model.state_dict() instead")
    return dict(content)


def _head(path: Path) -> bytes:
    """The file's first bytes, when they may be those of a checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    size = path.stat().st_size
    if not head:
        raise CheckpointError(f"{path}: the file is empty; download it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"{path}: is a web page of {size:,} bytes, not a checkpoint; "
            "the download gave a confirmation page: download the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file; run 'git lfs pull'")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is cut short at {size:,} bytes; download it again")
    if is_safetensors(head):
        return head
    if path.suffix == ".safetensors" and not is_torch_save(head):
        raise CheckpointError(f"{path}: is no complete safetensors file; download or save it again")
    if not is_torch_save(head):
        if head[:1] == b"\x08":  # how an ONNX file begins
            raise CheckpointError(
                f"{path}: is no PyTorch checkpoint, but perhaps an ONNX file; give what it was exported from"
            )
        raise CheckpointError(f"{path}: is no PyTorch checkpoint; give a .pth that torch.save wrote, or a .safetensors")
    return head


# What torch.load was seen to raise for files that were cut short or changed, of its old format and of its new one.
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OSError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
)


def _read_torch(path: Path) -> Any:
    protocol = _protocol(path)
    if protocol is not None and protocol >= _OLDEST_PICKLE_NOT_READ:
        raise CheckpointError(
            f"{path}: is saved with pickle protocol {protocol}, which cannot be read without running what it holds; "
            "where you trust it: torch.save(torch.load(PATH, weights_only=False), NEW_PATH)"
        )
    try:
        # Formats older than torch 1.6 warn, and are what the authors used. A path would be read by its suffix.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_types()), path.open("rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        kinds = ", ".join(_refused_kinds(path))
        if kinds:
            raise CheckpointError(
                f"{path}: holds pickled code or objects ({kinds}), which are never run here; "
                "load it where you trust it and save model.state_dict()"
            ) from error
        raise _unreadable(path, error) from error
    except _DAMAGED as error:
        if _is_torchscript(path):
            raise CheckpointError(
                f"{path}: is a TorchScript program, not a checkpoint; torch.save(torch.jit.load(PATH).state_dict(), "
                "NEW_PATH)"
            ) from error
        raise _unreadable(path, error) from error


def _plain_types() -> list[Any]:
    """Values that trainers leave beside the weights and that hold no code: settings and numpy's numbers."""
    import argparse

    import numpy as np
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType

    scalar = np.float64(0).__reduce__()[0]
    numbers = (np.dtype, scalar, Float64DType, Float32DType, Int64DType, Int32DType, BoolDType)
    # Files that were written under NumPy 1 name the same function by its older place.
    return [argparse.Namespace, *numbers, (scalar, "numpy.core.multiarray.scalar")]


def _protocol(path: Path) -> int | None:
    """The pickle protocol of a file of torch.save, of the old format or the one in a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"), None)
            if name is None:
                return None
            with archive.open(name) as file:
                return pickle_protocol(file.read(2))
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, zlib.error):
        with path.open("rb") as file:
            return pickle_protocol(file.read(2))


def _refused_kinds(path: Path) -> list[str]:
    """What torch.load would have had to call; nothing where the file is damaged instead."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        return [*found[:3], *(["..."] if len(found) > 3 else [])]
    except (*_DAMAGED, UnpicklingError):
        return []


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    size = path.stat().st_size
    reason = str(error).strip().split("\n", maxsplit=1)[0][:120] or type(error).__name__
    return CheckpointError(
        f"{path}: {size:,} bytes that are no complete PyTorch checkpoint ({reason}); download or save it again"
    )


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        content = json.loads(header.get("basnet", "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: is no complete safetensors file ({error}); download or save it again"
        ) from error
    return {**content, "state_dict": state}


def tensors_from_file(path: Path, first_layers: Sequence[str]) -> Mapping[str, Tensor]:
    """Read the tensors of any network's file, without other tools' prefixes.

    Args:
        path: A checkpoint file.
        first_layers: What the network's first convolution may be called; empty takes the largest group of tensors.

    Raises:
        CheckpointError: As `read_file`, and where there are no tensors.
    """
    content = read_file(path)
    return _state_dict(path, content, first_layers) if first_layers else _other_tensors(path, content)


def _is_ours(path: Path, content: Mapping[str, Any]) -> bool:
    """Whether this project wrote the file; a format of another version is refused rather than half understood."""
    found = content.get("format")
    if isinstance(found, str) and found.startswith("basnet-deploy/") and found != FORMAT:
        raise CheckpointError(f"{path}: is of format {found}, this version reads {FORMAT}; update basnet-deploy")
    return found == FORMAT


def _state_dict(
    path: Path, content: Mapping[str, Any], first_layers: Sequence[str] = _FIRST_LAYERS
) -> Mapping[str, Tensor]:
    """The tensors of a network, wherever the file has them; what is not where it is expected is said."""
    if content.get("format") == FORMAT and isinstance(content.get("state_dict"), Mapping):
        content = {"state_dict": content["state_dict"]}  # and not what resuming needs
    found = weights_in(content, first_layers)
    if not found:
        return _other_tensors(path, content)
    whole = found if first_layers is not _FIRST_LAYERS or len(found) == 1 else list(filter(_is_whole, found))
    taken, *others = whole or found
    if others or not taken.is_plain:
        also = f" (also there: {'; '.join(map(str, others))})" if others else ""
        _say_once(f"{path}: weights taken from {taken}{also}")
    return taken.tensors


def _is_whole(weights: Weights) -> bool:
    """Whether no parameter of BASNet is missing, as in averages of what was trained alone."""
    with torch.device("meta"):
        wanted = build_network("basnet", 1).state_dict()
    state = ours_from_authors(weights.tensors) if is_authors_layout(weights.tensors) else weights.tensors
    return all(name in state for name in wanted if not name.endswith("num_batches_tracked"))


def _other_tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a file without the first layer holds, for the error that names it."""
    found = [tensors for _, tensors in named_tensors(content)]
    if not found:
        if any(isinstance(value, Tensor) for value in content.values()):
            raise CheckpointError(f"{path}: its tensors have no names; save model.state_dict()")
        held = f"{', '.join(map(repr, list(content)[:4]))} but no tensors" if content else "nothing"
        raise CheckpointError(f"{path}: holds {held}; save model.state_dict()")
    return max(found, key=len)


def _arch(path: Path, content: Mapping[str, Any]) -> Arch:
    """The network a file of ours names; those from before there was a choice name none."""
    found = content.get("arch", "basnet")
    if found not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{path}: is of arch {found!r}, this version knows {known}; update basnet-deploy")
    return cast(Arch, found)


def _encoder(path: Path, content: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """The encoder and decoder widths that a file of ours names; those from before there was a choice name none."""
    encoder = content.get("encoder", RESNET34)
    widths = content.get("decoder_widths", DECODER_WIDTHS)
    try:
        if encoder != RESNET34:
            check_structure("basnet", encoder, tuple(widths))
            if content["width"] < 1:
                raise ValueError(f"width is {content['width']}; it must be at least 1")
        return encoder, tuple(int(w) for w in widths)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its network cannot be read ({error}); update basnet-deploy") from error


def _check_width(path: Path, state: Mapping[str, Tensor], arch: Arch) -> int:
    stem = state.get(f"{ARCHITECTURES[arch].first_layer}.weight")
    if stem is None or stem.ndim != 4 or not stem.shape[0]:
        some = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{path}: {len(state)} tensors ({some}, ...) of another network than {named(arch)}; "
            "give a checkpoint of this trainer or the authors' basnet.pth"
        )
    return int(stem.shape[0])


def _fitted(path: Path, state: dict[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Exactly the network's names and shapes, the counters that PyTorch 0.4 did not write added as zero."""
    arch, width = checkpoint.arch, checkpoint.width
    with torch.device("meta"):
        wanted = checkpoint.build().state_dict()
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=value.dtype))
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is not of this network" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: is not {named(arch)} of width {width}: {'; '.join(problems[:3])}{more}")
    return {name: state[name] for name in wanted}


def _refuse_not_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite in {kind}; use an earlier checkpoint, or store fp32"
            )


def _recipe(path: Path, content: Mapping[str, Any]) -> tuple[Preprocess, Postprocess]:
    try:
        return from_plain(content["preprocess"], Preprocess), from_plain(content["postprocess"], Postprocess)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its preprocess or postprocess cannot be read ({error})") from error
