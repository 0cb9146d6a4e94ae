"""What `--cluster` costs: the driver with planned pictures that are made up, and real pictures on two workers.

python -m tests.stress.cluster driver 10000            # in a process of its own: memory does not go back
python -m tests.stress.cluster pictures FOLDER         # against `basnet-run --threads 1` in the same run
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil


def driver(count: int) -> dict[str, float]:
    """Drive a run whose workers answer at once: peak MB, and microseconds of CPU time a picture."""
    from basnet_runtime.cluster.facts import Probe, own_versions
    from basnet_runtime.command.chunk import Item, Order, Outcome
    from basnet_runtime.command.cluster import Driver
    from basnet_runtime.command.config import RunConfig
    from basnet_runtime.command.jobs import Job
    from basnet_runtime.command.journal import Journal, run_settings
    from basnet_runtime.command.run import Result, Summary
    from basnet_runtime.salience import SalienceDecision, SalienceLog

    class Workers:
        """Eight workers that have done everything when they are asked."""

        def __init__(self) -> None:
            self.running: dict[int, tuple[Item, ...]] = {}

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ready(self) -> int:
            return 8

        def awaited(self) -> bool:
            return False

        def start(self, number: int, items: tuple[Item, ...]) -> None:
            self.running[number] = items

        def wait(self, seconds: float) -> list[tuple[int, Outcome]]:
            found = [(number, done(items)) for number, items in self.running.items()]
            self.running.clear()
            return found

    def done(items: tuple[Item, ...]) -> Outcome:
        summary = Summary(frames=len(items), seconds=len(items) * 0.05)
        for item in items:
            log = SalienceLog()
            log.add(SalienceDecision(score=0.9, salient=True))
            summary.results.append(Result(source=item.job.source, target=item.job.target, frames=1, decisions=log))
        sizes = {str(item.job.target): 1000 for item in items}
        return Outcome(summary=summary, facts=facts, cpu_seconds=0.0, sizes=sizes)

    facts = own_versions()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "masks"
        base = peak_mb()
        jobs = [
            Job(
                source=Path(f"/data/photos/{number // 1000:04d}/IMG_{number:07d}.jpg"),
                target=folder / f"{number // 1000:04d}" / f"IMG_{number:07d}.mask.png",
                media="picture",
            )
            for number in range(count)
        ]
        config = RunConfig(inputs=("/data/photos",), output=str(folder), cluster="local")
        journal = Journal(folder, run_settings(config))
        order = Order(run="run", config=config, local=True, probe=Probe())
        quiet = type("Quiet", (), {"started": lambda *_: None, "advanced": lambda *_: None})()
        summary = Summary()
        one = Driver(
            config=config,
            order=order,
            journal=journal,
            listener=quiet,
            summary=summary,
            tell=lambda _: None,
            exists=Path.exists,
            open_engine=Workers,
        )
        planned = peak_mb()
        began = time.process_time()
        with journal.writing(()):
            one.run(jobs, folder)
        spent = time.process_time() - began
        assert len(summary.results) == count
    return {
        "pictures": count,
        "peak_mb": round(peak_mb()),
        "before_mb": round(base),
        "planned_mb": round(planned),
        "cpu_us_a_picture": round(1e6 * spent / count, 1),
    }


def peak_mb() -> float:
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pictures(folder: Path, workers: int = 2) -> dict[str, object]:
    """Run the pictures of a folder alone and on workers, and compare bytes and CPU time."""
    with tempfile.TemporaryDirectory() as text:
        one, many = Path(text) / "one", Path(text) / "many"
        alone = measured([str(folder), "-o", str(one), "--threads", "1"], one)
        spread = measured([str(folder), "-o", str(many), "--cluster", "local", "--workers", str(workers)], many)
        masks = {path.name: path.read_bytes() for path in one.glob("*.png")}
        same = masks == {path.name: path.read_bytes() for path in many.glob("*.png")}
    return {
        "pictures": len(masks),
        "same_bytes": same,
        "alone_cpu_s": alone["own"],
        "workers_cpu_s": spread["children"],
        "ratio": round(spread["children"] / alone["own"], 3),
        "driver_scheduler_nannies_cpu_s": spread["own"],
        "first_mask_s": spread["first"],
        "wall_alone_s": alone["wall"],
        "wall_workers_s": spread["wall"],
    }


def measured(words: list[str], out: Path) -> dict[str, float]:
    """CPU seconds of `basnet-run` itself and of what it starts, and when the first mask was there."""
    began = time.monotonic()
    code = "from basnet_runtime.command.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *words, "--quiet"])
    seen, first = {}, 0.0
    try:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            for each in [watched, *watched.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = each.cpu_times()
                    seen[each.pid] = times.user + times.system
            if not first and next(out.glob("*.png"), None):
                first = time.monotonic() - began
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        process.wait()
    if process.returncode:
        raise SystemExit(f"basnet-run ended with {process.returncode}")
    own = seen.pop(process.pid)
    figures = {"own": own, "children": sum(seen.values()), "first": first, "wall": time.monotonic() - began}
    return {name: round(value, 2) for name, value in figures.items()}


if __name__ == "__main__":
    what, given = sys.argv[1:]
    print(json.dumps(driver(int(given)) if what == "driver" else pictures(Path(given))))
