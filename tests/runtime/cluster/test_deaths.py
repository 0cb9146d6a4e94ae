"""Whatever dies: nothing is lost, nothing is done twice, and exactly what kills a worker fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from basnet_runtime.command import cluster as driver
from basnet_runtime.media.video.write import segments
from basnet_torch.errors import BackendUnavailable
from basnet_torch.files import RUN
from tests import videos
from tests.processes import HEARS_CTRL_C

from .conftest import FAULTS, command, done_once, draw, journal_lines, results, wait_until


def masks(names):
    return [name.replace(".png", ".mask.png") for name in names]


SLOW = [f"{number}-slow.png" for number in range(12)]


def killed_meanwhile(tmp_path, cluster, spread, which):
    """A run of slow pictures; once some are done, a signal goes to a worker."""
    draw(tmp_path / "in", SLOW)
    (tmp_path / "out").mkdir()
    half = tmp_path / "out" / f".{RUN}-host-1-0.partial.png"  # as a worker leaves that is killed while it writes
    half.touch()

    def kill():
        wait_until(lambda: len(list((tmp_path / "out").glob("*.png"))) >= 2)
        os.kill(cluster.workers[0].pid, which)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        summary = spread(chunk=2)
    finally:
        thread.join(timeout=60)
    return summary


@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_is_killed_or_stopped(tmp_path, cluster, spread, which):
    summary = killed_meanwhile(tmp_path, cluster, spread, which)
    assert summary.failures == []
    assert done_once(tmp_path / "out", masks(SLOW))
    assert not list((tmp_path / "out").glob(".*partial*"))


def test_exactly_the_poisonous_fail_and_the_unlucky_do_not(tmp_path, spread):
    names = [f"{number}.png" for number in range(10)]
    draw(tmp_path / "in", [*names, "x-poison.png", "y-once.png"])
    summary = spread(chunk=4)
    assert [failure.source.name for failure in summary.failures] == ["x-poison.png"]
    assert "the worker died over it" in summary.failures[0].error
    assert done_once(tmp_path / "out", masks([*names, "y-once.png"]))
    assert [line["target"] for line in journal_lines(tmp_path / "out") if line["state"] == "failed"] == [
        "x-poison.mask.png"
    ]


def test_what_hangs_in_a_living_worker_fails_alone(tmp_path, spread, write_video, monkeypatch):
    """Its worker answers all the same, so nobody but the worker itself sees that nothing happens."""
    import dask

    from basnet_runtime.cluster.dask_workers import start_local

    monkeypatch.setattr(segments, "SEGMENT_FRAMES", 15)  # as in `faults.py`
    draw(tmp_path / "in", ["a.png", "hangs.png", "z.png"])
    write_video(tmp_path / "in" / "hangs.mp4", videos.images(32))
    slots = [{"BASNET_TEST_IDLE_SECONDS": "2"}] * 2
    with dask.config.set({"distributed.worker.preload": [str(FAULTS)]}), start_local(slots) as started:
        summary = spread(chunk=3, cluster=started.scheduler_address)
    assert {failure.source.name for failure in summary.failures} == {"hangs.png", "hangs.mp4"}
    for failure in summary.failures:
        assert "the worker died over it" in failure.error
        assert "ends itself when nothing happens for 15 minutes" in failure.error
    assert {Path(result.source).name for result in summary.results} == {"a.png", "z.png"}


def test_the_workers_code_raises(tmp_path, spread):
    draw(tmp_path / "in", ["a.png", "b.png", "raises.png"])
    summary = spread(chunk=3)
    (failure,) = summary.failures
    assert failure.source.name == "raises.png"
    assert "unexpected: RuntimeError: a defect of the worker" in failure.error
    assert done_once(tmp_path / "out", masks(["a.png", "b.png"]))


def test_nobody_there(tmp_path, spread, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr(driver, "_PATIENCE", 1.5)
    draw(tmp_path / "in", ["a.png"])
    with LocalCluster(n_workers=0, dashboard_address=None) as empty, pytest.raises(BackendUnavailable) as raised:
        spread(cluster=empty.scheduler_address)
    assert str(raised.value) == "no worker for 2 s; results are kept, and the same command resumes"


class Outside:
    """A scheduler and nodes as processes of their own, each in a process group."""

    def __init__(self, folder):
        self.file = folder / "scheduler.json"
        self.environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__PRELOAD": f'["{FAULTS}"]'}
        self.started = []
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        wait_until(lambda: self.file.exists() and self.file.read_text().endswith("}"))

    def start(self, *words):
        words = [sys.executable, "-m", "dask", *words, "--scheduler-file", str(self.file)]
        words += ["--dashboard-address", "127.0.0.1:0"]
        process = subprocess.Popen(
            words, env=self.environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.started.append(process)
        return process

    def node(self):
        words = ("worker", "--host", "127.0.0.1", "--nthreads", "1", "--memory-limit", "0")
        return self.start(*words)

    def end(self):
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)


@pytest.fixture
def outside(tmp_path):
    started = Outside(tmp_path)
    yield started
    started.end()


def run_outside(folder, outside, **options):
    words = command("in", "-o", "out", "--precision", "fp32", "--chunk", 1, "--cluster", outside.file)
    return subprocess.Popen(
        [*HEARS_CTRL_C, *words], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def workers_of(nanny):
    return [
        child
        for child in psutil.Process(nanny.pid).children(recursive=True)
        if "resource_tracker" not in str(child.cmdline())
    ]


@pytest.mark.slow
def test_nanny_node_and_scheduler_are_killed(tmp_path, outside, alone):
    """In one run: a nanny, then a whole node, then the scheduler; the same command goes on without a cluster."""
    names = [f"{number:02d}-slow.png" for number in range(40)]
    draw(tmp_path / "in", names)
    nodes = [outside.node() for _ in range(3)]
    run = run_outside(tmp_path, outside)
    try:
        done = lambda: len(list((tmp_path / "out").glob("*.png")))  # noqa: E731
        wait_until(lambda: done() >= 3)
        orphan = workers_of(nodes[0])
        os.kill(nodes[0].pid, signal.SIGKILL)
        before = done()
        wait_until(lambda: done() >= before + 3)
        os.killpg(nodes[1].pid, signal.SIGKILL)
        before = done()
        wait_until(lambda: done() >= before + 3)
        os.kill(outside.scheduler.pid, signal.SIGKILL)
        assert run.wait(timeout=30) == 3
        line = run.stderr.read().splitlines()[-1]
        assert "the scheduler is lost; results are kept, and the same command resumes" in line
        wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in orphan))
    finally:
        run.kill()
        run.stderr.close()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert 9 <= len(kept) < 40
    assert len(alone("out").results) <= 40 - len(kept)
    assert done_once(tmp_path / "out", masks(names)) or len(results(tmp_path / "out")) == 40
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in kept.items())


@pytest.mark.slow
def test_driver_killed_and_interrupted_and_gone_on(tmp_path, outside):
    """The driver is killed, the same command is interrupted, and the third time it ends."""
    names = [f"{number:02d}-slow.png" for number in range(30)]
    draw(tmp_path / "in", names)
    outside.node()
    outside.node()
    done = lambda: len(list((tmp_path / "out").glob("*.png")))  # noqa: E731

    first = run_outside(tmp_path, outside)
    wait_until(lambda: done() >= 3)
    first.kill()
    first.communicate(timeout=10)

    second = run_outside(tmp_path, outside)
    before = done()
    try:
        wait_until(lambda: done() >= before + 4)
        second.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, told = second.communicate(timeout=20)
        assert time.monotonic() - began < 10
    finally:
        second.kill()
    assert second.returncode == 130
    assert told.splitlines()[-1] == "interrupted"
    after = results(tmp_path / "out")
    time.sleep(1)
    assert results(tmp_path / "out") == after
    assert len(after) < 30

    third = run_outside(tmp_path, outside)
    _, told = third.communicate(timeout=60)
    assert third.returncode == 0, told
    assert results(tmp_path / "out").keys() == set(masks(names))
    assert not list((tmp_path / "out").glob(".*partial*"))
    last = max(i for i, line in enumerate(journal_lines(tmp_path / "out")) if line["state"] == "run")
    assert not {line.get("target") for line in journal_lines(tmp_path / "out")[last:]} & after.keys()


def test_a_local_cluster_is_interrupted(tmp_path):
    draw(tmp_path / "in", SLOW)
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__PRELOAD": f'["{FAULTS}"]'}
    words = command("in", "-o", "out", "--precision", "fp32", "--chunk", 8, "--cluster", "local")
    run = subprocess.Popen(
        [*HEARS_CTRL_C, *words],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list((tmp_path / "out").glob("*.png"))) >= 2)
        children = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        began = time.monotonic()
        _, told = run.communicate(timeout=20)
        assert time.monotonic() - began < 10
    finally:
        run.kill()
    assert run.returncode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "interrupted"
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert len(results(tmp_path / "out")) < len(SLOW)
