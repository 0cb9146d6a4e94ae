"""Kinds of model files by content, or by suffix where content does not tell.

model_kind(Path("weights.ckpt"))  # "checkpoint"
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from basnet_runtime.manifest import read_manifest_beside
from basnet_runtime.onnx_file.header import read_onnx_header, refuse_foreign
from basnet_torch.errors import ModelFileError

__all__ = ["PLAN_SUFFIXES", "ModelKind", "model_kind"]

ModelKind = Literal["checkpoint", "onnx", "plan"]
_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
PLAN_SUFFIXES = (".plan", ".engine")
_KINDS = "a checkpoint (.pth, .pt, .ckpt, .safetensors), an .onnx or a .plan"


def model_kind(path: Path) -> ModelKind:
    """Detect a file's kind; a missing or damaged one is what its suffix says.

    Its reader then says what is wrong.

    Raises:
        ModelFileError: Neither content nor suffix are of a model.
    """
    found = _by_content(path) or _by_suffix(path)
    if found is not None:
        return found
    if path.is_dir():
        raise ModelFileError(f"{path}: is a folder; give {_KINDS} file")
    if path.is_file():
        with path.open("rb") as file:
            refuse_foreign(path, file.read(512), path.stat().st_size)
        raise ModelFileError(f"{path}: {path.stat().st_size:,} bytes of no known kind; give {_KINDS} file")
    raise ModelFileError(f"{path}: no such file; give {_KINDS} file")


def _by_suffix(path: Path) -> ModelKind | None:
    suffix = path.suffix.lower()
    if suffix in _CHECKPOINT_SUFFIXES:
        return "checkpoint"
    return "onnx" if suffix == ".onnx" else "plan" if suffix in PLAN_SUFFIXES else None


def _by_content(path: Path) -> ModelKind | None:
    from basnet_torch.weights.file_heads import HEAD_BYTES, is_safetensors, is_torch_save

    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    if is_torch_save(head) or is_safetensors(head):
        return "checkpoint"
    try:
        read_onnx_header(path)
    except ModelFileError:
        return "plan" if _is_described_as_plan(path) else None
    return "onnx"


def _is_described_as_plan(path: Path) -> bool:
    """Whether the manifest beside it says so; a plan has no mark of its own that all releases share."""
    try:
        manifest = read_manifest_beside(path)
    except ModelFileError:
        return False
    return manifest is not None and manifest.kind == "plan"
