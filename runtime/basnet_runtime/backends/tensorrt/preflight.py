"""Preflight of a plan: can it run here, by its manifest.

TensorRT itself would only say that it failed.

A plan is a pure TensorRT file, so that other tools read it; what it is for stands beside it in `FILE.json`. A plan runs
in the flavor and version that built it, and one that TensorRT built on a GPU runs on GPUs of that compute capability.
"""

from __future__ import annotations

import re
from pathlib import Path

from basnet_runtime.backends.tensorrt.library import TensorRT, open_tensorrt
from basnet_runtime.engine_facts import EngineFacts
from basnet_runtime.kinds import FLAVOR_NAMES
from basnet_runtime.machine.installed import has_nvidia_driver
from basnet_runtime.manifest import Manifest, manifest_path, read_manifest_beside, sha256_of
from basnet_torch.errors import BackendUnavailable, ModelFileError

__all__ = ["check_gpu", "preflight", "read_plan_manifest"]

_AMPERE = 8.0  # the oldest compute capability that hardware-compatible plans run on


def read_plan_manifest(path: Path) -> tuple[Manifest, EngineFacts]:
    """The manifest of a plan, after a look at the plan itself.

    Raises:
        ModelFileError: The plan or its manifest is missing, damaged, or they do not belong together.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; give the path of a plan")
    manifest = read_manifest_beside(path)
    if manifest is None:
        raise ModelFileError(
            f"{path}: has no {manifest_path(path).name} beside it, so how to feed it and where it runs is unknown; "
            f"build it with 'basnet-export engine MODEL -o {path.name}'"
        )
    if manifest.engine is None:
        raise ModelFileError(f"{manifest_path(path)}: describes no TensorRT engine; build {path.name} again")
    _check_bytes(path, manifest.engine)
    return manifest, manifest.engine


def preflight(path: Path) -> tuple[Manifest, EngineFacts, TensorRT]:
    """Check a plan before it is loaded; returns its manifest and library.

    Raises:
        ModelFileError: There is no such file.
        BackendUnavailable: It is damaged, foreign, or for another flavor or version than is here, or there is no GPU.
    """
    try:
        manifest, engine = read_plan_manifest(path)
    except ModelFileError as error:
        if path.is_file():
            raise BackendUnavailable(str(error)) from error
        raise
    if not has_nvidia_driver():
        raise BackendUnavailable(
            f"{path}: is an engine for {FLAVOR_NAMES[engine.flavor]}, which runs on an NVIDIA GPU, "
            "and this machine has no NVIDIA driver; run the .onnx or .pth it was built from instead"
        )
    library = open_tensorrt(engine.flavor)
    if library.version != engine.version and not _compatible(engine, library):
        raise BackendUnavailable(
            f"{path}: was built by {engine.library}, and here is {library}; {_rebuild(path, engine)}"
        )
    return manifest, engine, library


def check_gpu(path: Path, engine: EngineFacts, name: str, compute_capability: str) -> None:
    """Refuse a plan that was built for other GPUs than this one.

    Raises:
        BackendUnavailable: Naming both.
    """
    wanted = engine.compute_capabilities
    everywhere = bool(engine.flags.get("hardware_compatible")) and float(compute_capability) >= _AMPERE
    if wanted and compute_capability not in wanted and not everywhere:
        built = f" on {engine.gpu}" if engine.gpu else ""
        raise BackendUnavailable(
            f"{path}: was built{built} for compute capability {', '.join(wanted)}, "
            f"and {name} has {compute_capability}; {_rebuild(path, engine)}"
        )


def _rebuild(path: Path, engine: EngineFacts) -> str:
    return f"rebuild it here with 'basnet-export engine MODEL -o {path.name} --flavor {engine.flavor}'"


def _compatible(engine: EngineFacts, library: TensorRT) -> bool:
    """A version-compatible plan runs in the same and later releases of its major version."""
    if not engine.flags.get("version_compatible"):
        return False
    built, here = (tuple(map(int, re.findall(r"\d+", version)[:3])) for version in (engine.version, library.version))
    return built[:1] == here[:1] and built <= here


def _check_bytes(path: Path, engine: EngineFacts) -> None:
    size, rebuild = path.stat().st_size, _rebuild(path, engine)
    if size < engine.plan_bytes:
        found = f"{size:,} of {engine.plan_bytes:,} bytes"
        raise ModelFileError(f"{path}: is cut short ({found}); copy it again, or {rebuild}")
    if sha256_of(path) != engine.plan_sha256:
        described = manifest_path(path).name
        raise ModelFileError(f"{path}: is not the plan that {described} describes (SHA-256 differs); {rebuild}")
