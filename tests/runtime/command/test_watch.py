"""Following folders: a file is taken when it has stopped changing, once; what cannot be done ends nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from basnet_runtime.command.jobs import Failure, Job, Plan
from basnet_runtime.command.watch import StableFiles, check_watched, one_by_one
from basnet_runtime.media.image.pictures import read_picture, write_picture
from basnet_torch.errors import UsageError
from tests.processes import HEARS_CTRL_C


def looks(stable, path, count):
    asked = []
    for _ in range(count):
        asked.append(stable.wanted(path))
        stable.end_look()
    return asked


def test_a_file_is_taken_when_it_has_settled_and_once(tmp_path):
    path, stable = tmp_path / "a.jpg", StableFiles()
    assert not stable.wanted(path)
    path.write_bytes(b"")
    assert looks(stable, path, 5) == [False] * 5
    path.write_bytes(b"half")
    assert looks(stable, path, 2) == [False, False]
    path.write_bytes(b"half and half")
    assert looks(stable, path, 5) == [False, False, True, False, False]
    path.write_bytes(b"another one")
    assert looks(stable, path, 4) == [False, False, True, False]


def test_files_that_are_gone_are_forgotten(tmp_path):
    path, stable = tmp_path / "a.jpg", StableFiles()
    path.write_bytes(b"x")
    looks(stable, path, 4)
    path.unlink()
    looks(stable, path, 1)
    assert stable._seen == {}


def test_only_folders_are_followed(tmp_path):
    check_watched([str(tmp_path)])
    with pytest.raises(UsageError, match="is not a folder; --watch takes folders"):
        check_watched([str(tmp_path / "a.jpg")])


def test_what_a_plan_would_refuse_fails_alone(tmp_path):
    names = ("a.jpg", "b.jpg", "b.png")
    jobs = [Job(source=tmp_path / n, target=tmp_path / f"{n[0]}.mask.png", media="picture") for n in names]
    jobs[0].target.write_bytes(b"there")
    plan = Plan(jobs=tuple(jobs), failures=(Failure(source=tmp_path / "c.jpg", error="c"),))
    kept, failures = one_by_one(plan, overwrite=False, skip_existing=False, finished=frozenset())
    assert kept == [jobs[1]]
    assert [failure.source.name for failure in failures] == ["c.jpg", "a.jpg", "b.png"]
    assert "already there" in failures[1].error
    assert "use --keep-suffix" in failures[2].error


_FAKE = """
import sys, types
from basnet_runtime.command import watch
from basnet_runtime.command import run
run.LOOK_SECONDS = 0.05
from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.model import SaliencyModel
from basnet_torch.spec import Postprocess, Preprocess
module = types.ModuleType("basnet_runtime.open")
module.open_model = lambda *_, **__: SaliencyModel(FakeBackend(), Preprocess(height=32, width=32), Postprocess(), "f")
sys.modules["basnet_runtime.open"] = module
from basnet_runtime.command.cli import main
main()
"""


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


def test_watching_until_ctrl_c(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = 240
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write_picture(tmp_path / "in" / "first.png", image)
    command = [*HEARS_CTRL_C, sys.executable, "-c", _FAKE, "in", "-o", "out", "--recursive", "--watch"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out" / "first.mask.png")
    write_picture(tmp_path / "whole.png", image)
    data = (tmp_path / "whole.png").read_bytes()
    slow = tmp_path / "in" / "sub" / "slow.png"
    for end in range(0, len(data), max(1, len(data) // 5)):  # copied bit by bit
        slow.write_bytes(data[:end])
        time.sleep(0.05)
    slow.write_bytes(data)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    write_picture(tmp_path / "in" / "sub" / "dim.png", np.full((40, 60, 3), 20, np.uint8))
    wait_for(tmp_path / "out" / "sub" / "slow.mask.png")
    wait_for(tmp_path / "out" / "sub" / "dim.mask.png")
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1  # of bad.png
    assert "in/first.png -> out/first.mask.png" in stderr
    assert "in/sub/slow.png -> out/sub/slow.mask.png" in stderr
    assert stderr.count("in/bad.png: cannot be read") == 2  # when it was met, and at the end
    assert stderr.count("note: in/sub/dim.png: salient: false (score 0.078); its mask is kept") == 1
    assert "Traceback" not in stderr
    assert read_picture(tmp_path / "out" / "sub" / "slow.mask.png").image_HWC.shape == (40, 60, 3)
    again = subprocess.run([*command[:-1], "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "3 of 4 were done by an earlier run and are kept" in again.stderr
