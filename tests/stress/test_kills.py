"""A folder job that is killed goes on; what the proof calls a problem is one."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from basnet_runtime.media.image.pictures import write_picture
from tests.stress.kills import KillConfig, kill_folder_job

_FAKE = """
import sys, time, types
from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.model import SaliencyModel
from basnet_torch.spec import Postprocess, Preprocess
class Slow(FakeBackend):
    def infer(self, batch):
        time.sleep(0.02)
        return super().infer(batch)
module = types.ModuleType("basnet_runtime.open")
module.open_model = lambda *_, **__: SaliencyModel(Slow(), Preprocess(height=32, width=32), Postprocess(), "slow")
sys.modules["basnet_runtime.open"] = module
"""
_MAIN = "from basnet_runtime.command.cli import main\nmain()\n"
# A writer that gives a file its name before it is whole, and a run that forgets its journal.
_HALF = """
from basnet_runtime.command import picture_files
whole = picture_files.write_picture
def half(target, pixels, *args, **options):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"half")
    time.sleep(0.2)
    target.unlink()
    whole(target, pixels, *args, **options)
picture_files.write_picture = half
"""
_FORGETFUL = """
from basnet_runtime.command.journal import Journal
Journal.finished = lambda *_: frozenset()
sys.argv.append("--overwrite")
"""


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(12):
        image = np.zeros((40 + i, 60, 3), np.uint8)
        image[10:30, 20:40] = generator.integers(100, 255, 3)
        path = tmp_path / "in" / ("sub ä" if i % 3 else ".") / f"{i}.{'jpg' if i % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, image)
    (tmp_path / "in" / "bad.jpg").write_text("no picture")
    return tmp_path / "in"


def killed(folder, tmp_path, code, kills):
    command = (sys.executable, "-c", _FAKE + code + _MAIN)
    return kill_folder_job(KillConfig(folder=folder, work=tmp_path / "work", kills=kills, seed=1, command=command))


def test_killed_jobs_go_on(folder, tmp_path):
    report = killed(folder, tmp_path, "", kills=4)
    assert report, report.problems
    assert (report.inputs, report.kills, report.redone) == (12, 4, 0)


@pytest.mark.parametrize(("code", "problem"), [(_HALF, "has other bytes"), (_FORGETFUL, "was made again")])
def test_it_sees_what_it_must_see(folder, tmp_path, code, problem):
    report = killed(folder, tmp_path, code, kills=40)  # ends with the first problem
    assert not report
    assert any(problem in text for text in report.problems)


@pytest.mark.stress
def test_fifty_kills_of_the_built_in_model(folder, tmp_path):
    report = kill_folder_job(KillConfig(folder=folder, work=tmp_path / "work", kills=50))
    print(report)
    assert report, report.problems
    assert report.redone == 0
