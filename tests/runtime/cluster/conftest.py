"""A scheduler and two workers shared by the tests of a module, and pictures to run."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.journal import JOURNAL_NAME
from basnet_runtime.command.run import run

distributed = pytest.importorskip("distributed")
FAULTS = Path(__file__).with_name("faults.py")


class Quiet:
    def started(self, what, total):
        pass

    def advanced(self):
        pass


def draw(folder, names):
    """Pictures that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        image = np.full((48, 64, 3), 30, np.uint8)
        cv2.circle(image, (20 + index % 24, 24), 12 + index % 5, (200, 180, 90 + index % 100), -1)
        assert cv2.imwrite(str(folder / name), image)
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A scheduler with two workers, each under a nanny, that meet the faults of `faults.py`."""
    import dask

    from basnet_runtime.cluster.dask_workers import start_local

    set_for_tests = {"distributed.worker.preload": [str(FAULTS)], "distributed.scheduler.worker-ttl": "4s"}
    with dask.config.set(set_for_tests), start_local([{}, {}]) as started:
        yield started


@pytest.fixture
def options(tmp_path):
    """Makes the configuration of a run from `in` to the folder of that name."""

    def made(out, **given):
        given.setdefault("inputs", (str(tmp_path / "in"),))
        return RunConfig(output=str(tmp_path / out), precision="fp32", **given)

    return made


@pytest.fixture
def alone(options):
    """Runs on this machine alone."""
    return lambda out="alone", **given: run(options(out, threads=1, **given), Quiet())


@pytest.fixture
def spread(options, cluster):
    """Runs on the shared cluster."""
    from basnet_runtime.command.cluster import run_on_cluster

    def ran(out="out", **given):
        given.setdefault("cluster", cluster.scheduler_address)
        tell = given.pop("tell", lambda _: None)
        return run_on_cluster(options(out, **given), Quiet(), tell=tell)

    return ran


def command(*words):
    return [sys.executable, "-c", "from basnet_runtime.command.cli import main; main()", *map(str, words)]


def journal_lines(folder):
    return [json.loads(line) for line in (folder / JOURNAL_NAME).read_text().splitlines()]


def done_once(folder, names):
    """Whether each of these results, and no other, is in the folder and was noted as done exactly once."""
    noted = Counter(line["target"] for line in journal_lines(folder) if line["state"] == "done")
    return noted == Counter(names) and results(folder).keys() == set(names)


def wait_until(true, seconds=30):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(folder):
    """Bytes by name, without the journal."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".jsonl")}
