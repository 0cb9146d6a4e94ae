"""Facts of a worker: another product, model or precision is refused by name.

A cluster that mixes them would write two kinds of masks without a word; Dask itself only warns of other versions.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from basnet_runtime.machine.cpu_features import processor_flags
from basnet_runtime.machine.installed import installed_version
from basnet_runtime.machine.threads import without_threads
from basnet_torch import __version__
from basnet_torch.errors import BackendUnavailable

__all__ = ["Facts", "Probe", "Refused", "differences", "model_fact", "own_versions", "worker_facts"]

_INSTRUCTIONS = re.compile(r"avx2|avx512f|\w*vnni|avx512_bf16|amx_\w+|avx512_fp16|asimd\w*|sve\w*|i8mm|bf16")
_PRECISIONS = re.compile(r"\b(fp32|fp16|bf16|int8|fp8)\b", re.IGNORECASE)


class Refused(BackendUnavailable):
    """A worker may not work, and why; it ends the run with exit code 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a worker must see: inputs with their sizes, and a file in the output.

    The driver put that file there.

    Attributes:
        sources: Path and size of inputs, one of each folder.
        targets: Path of each output folder's probe file.
        token: What the probe files hold.
    """

    sources: tuple[tuple[str, int], ...] = ()
    targets: tuple[str, ...] = ()
    token: str = ""

    def check(self, node: str) -> None:
        """Look for everything.

        Raises:
            Refused: Something is not to be seen here, or the output cannot be written.
        """
        for path, size in self.sources:
            if not Path(path).exists() or Path(path).stat().st_size != size:
                raise Refused(f"node {node}: does not see the input {path}; mount it there under the same path")
        for path in self.targets:
            folder = Path(path).parent
            if not Path(path).exists() or Path(path).read_text() != self.token:
                raise Refused(
                    f"node {node}: does not see the output folder {folder}; mount it there under the same path"
                )
            if not os.access(folder, os.W_OK):
                raise Refused(f"node {node}: cannot write the output folder {folder}; allow it there")


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """A worker's answer before it gets work; as a reference, empty asks for nothing.

    Attributes:
        node: Host name and process id.
        product: Version of this product.
        python: Version, major and minor.
        distributed: Version.
        numpy: Version.
        model: Name and SHA-256 of the model's file.
        precision: What the backend computes in.
        device: What was asked.
        runs_on: The backend's description.
        instructions: Those of the CPU's instruction sets that kernels are chosen by.
    """

    node: str
    product: str = ""
    python: str = ""
    distributed: str = ""
    numpy: str = ""
    model: str = ""
    precision: str = ""
    device: str = ""
    runs_on: str = ""
    instructions: str = ""


_SAME = ("product", "python", "distributed", "model", "precision", "device")  # else refused
_LIKE = ("numpy", "instructions", "runs_on")  # else bytes may differ by a level


def own_versions() -> Facts:
    """What any process of this product says of itself."""
    return Facts(
        node=f"{platform.node()}:{os.getpid()}",
        product=__version__,
        python=".".join(platform.python_version_tuple()[:2]),
        distributed=installed_version("distributed") or "none",
        numpy=installed_version("numpy") or "none",
        instructions=" ".join(sorted(filter(_INSTRUCTIONS.fullmatch, processor_flags() or ()))),
    )


def worker_facts(model: Path, *, device: str, runs_on: str) -> Facts:
    """What a worker says of itself and of its opened model.

    Args:
        model: The model's file.
        device: What was asked.
        runs_on: The backend's description.
    """
    return replace(
        own_versions(),
        model=model_fact(model),
        precision=" ".join(sorted({found.lower() for found in _PRECISIONS.findall(runs_on)})),
        device=device,
        runs_on=without_threads(runs_on),
    )


def model_fact(path: Path) -> str:
    """Name and SHA-256 of a model's file as it is now."""
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def differences(facts: Facts, reference: Facts, *, like: Iterable[str] = _LIKE) -> list[str]:
    """Notes on what differs without being refused, one line each.

    Raises:
        Refused: Product, Python, distributed, model, precision or device differ; the line names the node.
    """
    notes = []
    for name in (*_SAME, *like):
        mine, other = getattr(facts, name), getattr(reference, name)
        if not other or mine == other:
            continue
        if name in _SAME:
            raise Refused(
                f"node {facts.node}: {name} is {mine}, and {other} on {reference.node}; all nodes need the same"
            )
        notes.append(f"node {facts.node}: {name} is {mine}, and {other} on {reference.node}")
    return notes
