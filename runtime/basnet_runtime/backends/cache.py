"""Optimized model cache under XDG_CACHE_HOME or ~/.cache, for faster starts.

    kept = optimized_model_path(path, by="onnxruntime-1.32.0")

What is kept fits the file's bytes, the library's version and this kind of CPU, and nothing else. Only OpenVINO as
a provider of ONNX Runtime names and writes its own files, in the same folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

from basnet_runtime.machine.cpu_features import processor_flags
from basnet_runtime.manifest import sha256_of
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.onnx_file.header import read_onnx_header

__all__ = [
    "can_keep_optimized_models",
    "note_use",
    "optimized_model_folder",
    "optimized_model_path",
    "remove_old_optimized_models",
]

_MOST_BYTES = 1 << 30  # of all graphs that are kept


def optimized_model_path(path: Path, *, by: str, digest: str = "", suffix: str = ".onnx") -> Path:
    """Return where the optimized graph of `path` by library `by` is kept.

    Whether it exists or not.

    Args:
        path: The model's file.
        by: The library's name and version, and the settings that shape what it makes.
        digest: The file's SHA-256 where it is known and all weights are inside; empty computes one of all weights.
        suffix: Of the kept file.

    Raises:
        OSError: The file cannot be read.
        ModelFileError: Weights beside it cannot be read.
    """
    if not digest:
        external = read_onnx_header(path).external
        digest = read_graph_content(path).sha256 if external else sha256_of(path)
    processor = " ".join((platform.machine(), *sorted(processor_flags() or ())))
    key = hashlib.sha256(f"{digest} {by} {processor}".encode()).hexdigest()
    return optimized_model_folder() / f"{key[:32]}{suffix}"


def note_use(kept: Path) -> None:
    """Mark a kept graph as used last, where its folder may be written to."""
    with suppress(OSError):
        kept.touch()


def remove_old_optimized_models() -> None:
    """Remove the least recently used files, until the others take a gibibyte at most."""
    with suppress(OSError):  # another process may be at it too
        files = filter(Path.is_file, optimized_model_folder().iterdir())  # not what another process writes in
        used = sorted(files, key=lambda path: path.stat().st_atime, reverse=True)
        total = 0
        for path in used:
            total += path.stat().st_size
            if total > _MOST_BYTES:
                path.unlink(missing_ok=True)


def optimized_model_folder() -> Path:
    """Where all of them lie.

    Raises:
        OSError: The user has no home folder, as in some containers.
    """
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error
    return Path(cache) / "basnet-deploy" / "graphs"


def can_keep_optimized_models() -> bool:
    """Tell whether the cache folder is writable; OpenVINO would fail where it is not."""
    try:
        optimized_model_folder().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(optimized_model_folder(), os.W_OK)
