"""Which network a number is of, so that results of two reports are set side by side only where they are of the same.

fingerprint_of(Path("basnet.onnx"))  # "3f0c9a51be27/1c80be1d02aa"

A checkpoint and a graph exported from it in FP32 are one network. A file of less precision, a `frame` graph and a plan
have numbers of their own, and so their own digest: two INT8 files may bear one name and differ in calibration.
"""

from __future__ import annotations

from pathlib import Path

from basnet_runtime.manifest import Manifest, read_manifest, sha256_of
from basnet_runtime.model_files import model_kind
from basnet_torch.spec import Preprocess

__all__ = ["fingerprint_of"]

_DIGITS = 12


def fingerprint_of(path: Path) -> str:
    """The checkpoint's digest and that of its preparing, or the digest of a file that computes otherwise.

    Raises:
        ModelFileError: An `.onnx` cannot be read.
        CheckpointError: A checkpoint cannot be read.
    """
    kind = model_kind(path)
    if kind == "checkpoint":
        from basnet_runtime.backends.pytorch import read_checkpoint

        return _network(sha256_of(path), read_checkpoint(path).preprocess)
    if kind == "onnx" and _is_the_checkpoint(manifest := read_manifest(path)):
        return _network(manifest.checkpoint_sha256, manifest.preprocess)
    return sha256_of(path)[:_DIGITS]


def _is_the_checkpoint(manifest: Manifest) -> bool:
    return manifest.precision == "fp32" and manifest.graph == "tensor"


def _network(checkpoint_sha256: str, preprocess: Preprocess) -> str:
    return f"{checkpoint_sha256[:_DIGITS]}/{preprocess.digest()}"
