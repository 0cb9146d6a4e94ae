"""How much memory a process holds, and how much one candidate needs in a process of its own.

resident_bytes()     # of this process, now
need = memory_of(candidate, pictures=1)

A candidate is measured in a process that only opens it and runs it, because in one process libraries, once loaded, are
shared, and what one candidate frees another takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basnet_torch.device import Device
from basnet_torch.errors import MediaError

if TYPE_CHECKING:
    from basnet_benchmarks.candidates import Candidate

__all__ = ["Memory", "highest_bytes", "memory_of", "resident_bytes"]

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_TASKS = Path("/proc/self/task")
_RUNS = 3
_SECONDS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What one candidate needs in a process of its own.

    Attributes:
        before_bytes: Resident with this program alone, before the library is loaded.
        opened_bytes: Resident when the model is ready.
        highest_bytes: The most at once, over opening and running.
        threads: Of the process while it runs, its own included.
        device_bytes: By which the device's free memory fell; None on a processor.
    """

    before_bytes: int
    opened_bytes: int
    highest_bytes: int
    threads: int
    device_bytes: int | None = None

    def to_dict(self) -> dict[str, int | None]:
        """Plain values for JSON."""
        return asdict(self)


def resident_bytes() -> int:
    """Resident memory of this process.

    Raises:
        MediaError: The system does not tell.
    """
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError as error:
        raise MediaError("resident memory: this system has no /proc to read it from; measure on Linux") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def highest_bytes() -> int | None:
    """The most that was resident at once since this program began; None where the system does not tell.

    `getrusage` would give the parent's memory too where that was larger when it started this program.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return next(found, None)


def memory_of(candidate: Candidate, pictures: int) -> Memory | str:
    """Open and run the candidate in another process; a text says why that gave nothing.

    Args:
        candidate: Which can be opened here.
        pictures: Of the batch that is run.
    """
    order = json.dumps({"candidate": candidate.described(), "pictures": pictures})
    command = (sys.executable, "-m", "basnet_benchmarks.memory", order)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        answer = subprocess.run(  # noqa: S603 - this very interpreter, no shell
            command, capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {_SECONDS} s"
    if answer.returncode:
        return (answer.stderr.strip().splitlines() or ["no reason given"])[-1][:160]
    return Memory(**json.loads(answer.stdout.splitlines()[-1]))


def _measured(order: dict[str, Any]) -> Memory:
    """What the other process does."""
    from basnet_benchmarks.candidates import noise_batch, open_described

    before, free = resident_bytes(), _free_on(Device.parse(order["candidate"]["device"]))
    with open_described(order["candidate"]) as model:
        opened = resident_bytes()
        batch = noise_batch(model, order["pictures"])
        for _ in range(_RUNS):
            model.backend.infer(batch)
        threads = sum(1 for _ in _TASKS.iterdir())
        left = _free_on(Device.parse(order["candidate"]["device"]))
    taken = None if free is None or left is None else free - left
    highest = highest_bytes() or resident_bytes()
    return Memory(before_bytes=before, opened_bytes=opened, highest_bytes=highest, threads=threads, device_bytes=taken)


def _free_on(device: Device) -> int | None:
    """Free bytes of a CUDA device, where PyTorch is there to ask for them."""
    if device.on_cpu:
        return None
    try:
        import torch
    except ImportError:
        return None
    free, _ = torch.cuda.mem_get_info(torch.device(device.for_torch()))
    return int(free)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measured(json.loads(sys.argv[1])).to_dict()) + "\n")
