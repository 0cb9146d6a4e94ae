"""Records of a run: `log.jsonl`, `log.txt`, `curves.html`, TensorBoard if asked.

Legend: H height, W width.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from basnet_torch import __version__
from basnet_torch.data.datasets import PairStore
from basnet_torch.errors import BackendUnavailable
from basnet_torch.files import atomic_write
from basnet_torch.train.curves import write_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunRecord", "environment", "fingerprint"]

_LIBRARIES = ("torch", "numpy", "opencv-python-headless", "safetensors")


class RunRecord:
    """The written record of one run; only the first process of several is `active`.

    Args:
        run: Directory to write to; made when missing.
        tensorboard: Also write TensorBoard's files, into `run/tensorboard`.
        active: Whether anything is written at all.

    Raises:
        BackendUnavailable: TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Path, *, tensorboard: bool = False, active: bool = True) -> None:
        self._run = run
        self._active = active
        self._board: SummaryWriter | None = _board(run / "tensorboard") if tensorboard and active else None
        for name in ("log.jsonl", "log.txt") if active else ():
            _drop_torn_line(run / name)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one step or validation."""
        if not self._active:
            return
        self._run.mkdir(parents=True, exist_ok=True)
        for name, text in (("log.jsonl", json.dumps(record)), ("log.txt", in_words(record))):
            with (self._run / name).open("a") as file:
                file.write(text + "\n")
        if self._board is not None:
            kind = record.get("kind", "")
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"{kind}/{name}", value, record["step"])

    def picture(self, name: str, image_HWC: NDArray[np.uint8], step: int) -> None:
        """Save a picture uint8 H,W,3 as `NAME.png` (the latest) and in TensorBoard (all)."""
        if not self._active:
            return
        import cv2

        done, data = cv2.imencode(".png", image_HWC[..., ::-1])
        if done:
            with atomic_write(self._run / f"{name}.png", overwrite=True) as beside:
                beside.write_bytes(data.tobytes())
        if self._board is not None:
            self._board.add_image(name, image_HWC, step, dataformats="HWC")

    def finish(self) -> None:
        """Draw the curves and hand everything to the disk."""
        if self._active and (self._run / "log.jsonl").exists():
            write_curves(self._run)
        if self._board is not None:
            self._board.flush()


def _drop_torn_line(path: Path) -> None:
    """Remove a last line that a full disk or a power failure cut short: nothing can be read of it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def in_words(record: Mapping[str, Any]) -> str:
    """One line for people.

    >>> in_words({"kind": "step", "step": 3, "loss": 1.25, "lr": 0.001})
    'step 3: loss 1.25, lr 0.001'
    """
    values = {name: value for name, value in record.items() if name not in ("kind", "step")}
    told = ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    return f"{record.get('kind', 'record')} {record.get('step', '-')}: {told}"


def fingerprint(store: PairStore) -> dict[str, Any]:
    """Return the identity of training data: pair count, digests of names and bytes."""
    content = hashlib.sha256()
    for part in (store.images, store.masks, store.ignored):
        if part is not None:
            content.update(np.ascontiguousarray(part).data)
    names = hashlib.sha256("\n".join(store.names).encode()).hexdigest()[:12]
    return {"pairs": len(store), "names": names, "content": content.hexdigest()[:16]}


def environment() -> dict[str, Any]:
    """What a run was made with: command, commit, versions and machine."""
    return {
        "command": sys.argv,
        "commit": _commit(),
        "versions": {"basnet-deploy": __version__, "python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _commit() -> str:
    """Of the working tree that this package is in; with `+` when it differs from it."""
    here = str(Path(__file__).parent)
    try:
        called = [["git", "-C", here, *rest] for rest in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])]
        head, changes = (subprocess.run(c, capture_output=True, text=True, timeout=20, check=True) for c in called)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown: not run from a repository"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _board(folder: Path) -> SummaryWriter:
    if find_spec("tensorboard") is None:
        raise BackendUnavailable("TensorBoard is not installed; pip install 'basnet-deploy[train]'")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
