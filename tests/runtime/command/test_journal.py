"""The journal of a folder job: what counts as done, what does not, and what a killed run leaves."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from basnet_runtime.command.jobs import Job
from basnet_runtime.command.journal import JOURNAL_NAME, Journal, noted
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import PendingFile, atomic_write

SETTINGS = {"kind": "mask"}


@pytest.fixture
def jobs(tmp_path):
    made = []
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
        made.append(
            Job(source=tmp_path / f"{name}.jpg", target=tmp_path / "out" / "sub" / f"{name}.png", media="picture")
        )
    return made


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


def make(job, content=b"result"):
    job.target.parent.mkdir(parents=True, exist_ok=True)
    job.target.write_bytes(content)


def finished(folder, jobs, settings=SETTINGS, **options):
    return {target.stem for target in Journal(folder, settings, **options).finished(jobs)}


class Killed(BaseException):
    pass


def broken_off(folder, jobs, **options):
    """A run that is killed after a is done, while b is begun and has just got its name."""
    journal = Journal(folder, SETTINGS, **options)
    try:
        with journal.writing(jobs):
            with noted(journal, jobs[0]):
                make(jobs[0])
            with noted(journal, jobs[1]):
                make(jobs[1])
                raise Killed
    except Killed:
        pass


def test_done_and_begun_with_a_file_count(folder, jobs):
    broken_off(folder, jobs)
    assert finished(folder, jobs) == {"a", "b"}
    jobs[1].target.unlink()
    assert finished(folder, jobs) == {"a"}
    jobs[0].target.unlink()
    assert finished(folder, jobs) == set()


def test_other_settings_sources_or_results_do_not_count(folder, jobs):
    broken_off(folder, jobs)
    assert finished(folder, jobs, {"kind": "cutout"}) == set()
    jobs[1].source.write_bytes(b"another picture")
    make(jobs[0], b"edited by hand")
    assert finished(folder, jobs) == set()


def test_failed_is_tried_again(folder, jobs):
    journal = Journal(folder, SETTINGS)
    make(jobs[0])
    with journal.writing(jobs), pytest.raises(MediaError), noted(journal, jobs[0]):
        raise MediaError("exists already")
    assert finished(folder, jobs) == set()


def test_overwriting_goes_on_and_starts_again(folder, jobs):
    broken_off(folder, jobs, overwrite=True)
    assert finished(folder, jobs, overwrite=True) == {"a"}  # b may be the old file
    assert finished(folder, jobs) == {"a"}
    journal = Journal(folder, SETTINGS, overwrite=True)
    with journal.writing(jobs), noted(journal, jobs[1]):
        make(jobs[1])
    assert finished(folder, jobs, overwrite=True) == set()  # that run came to its end: everything once more
    assert finished(folder, jobs) == {"a", "b"}


def test_a_torn_line_harms_nothing(folder, jobs):
    broken_off(folder, jobs)
    path = folder / JOURNAL_NAME
    text = path.read_text()
    path.write_text(text + '{"state": "begun", "target": "sub/c')
    assert finished(folder, jobs) == {"a", "b"}
    journal = Journal(folder, SETTINGS)
    with journal.writing(jobs), noted(journal, jobs[2]):
        make(jobs[2])
    assert finished(folder, jobs) == {"a", "b", "c"}


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"state": "run"}', '{"state": "begun", "target": "x"}', "\0\xff"])
def test_strange_lines_are_passed_over(folder, jobs, line):
    broken_off(folder, jobs)
    path = folder / JOURNAL_NAME
    path.write_text(f"{line}\n{path.read_text()}{line}\n")
    assert finished(folder, jobs) == {"a", "b"}


def test_half_files_of_killed_runs_are_removed_and_no_others(folder, jobs):
    broken_off(folder, jobs)
    path = folder / JOURNAL_NAME
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["run"] = "0123456789ab"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    half, foreign = (folder / "sub" / f".{run}-3.partial.png" for run in ("0123456789ab", "ba9876543210"))
    half.write_bytes(b"half")
    foreign.write_bytes(b"of a run at work")
    with Journal(folder, SETTINGS).writing(jobs):
        assert not half.exists()
    assert foreign.exists()


def test_temporary_names_carry_the_run(tmp_path):
    from basnet_torch.files import RUN

    pending = PendingFile(tmp_path / "a.png", overwrite=False)
    assert pending.path.name.startswith(f".{RUN}-")
    pending.discard()


def test_two_runs_at_once_are_refused(folder, jobs):
    with Journal(folder, SETTINGS).writing(jobs):
        with pytest.raises(UsageError, match="another run is writing this folder"):
            Journal(folder, SETTINGS).writing(jobs).__enter__()
        assert finished(folder, jobs) == set()


def test_unreadable_and_unwritable(tmp_path, jobs):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be"), Journal(tmp_path / "file", SETTINGS).writing(jobs):
        pass
    os.mkdir(tmp_path / JOURNAL_NAME)  # noqa: PTH102
    with pytest.raises(MediaError, match="is a directory"):
        Journal(tmp_path, SETTINGS)


def test_temporary_names_of_forked_processes_differ(tmp_path):
    """They share the run's name and its counter."""
    if not (child := os.fork()):
        PendingFile(tmp_path / "a.png", overwrite=False)
        os._exit(0)
    os.waitpid(child, 0)
    pending = PendingFile(tmp_path / "a.png", overwrite=False)
    assert len(list(tmp_path.iterdir())) == 2
    pending.discard()


def test_a_full_disk_is_one_line(tmp_path, jobs):
    with pytest.raises(MediaError, match=r"note\.md: cannot be written: no space left on device"):  # noqa: SIM117
        with atomic_write(tmp_path / "note.md", overwrite=False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    journal, full = Journal(tmp_path, SETTINGS), Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(MediaError, match=r"cannot be written: no space left on device"):  # noqa: PT012, SIM117
        with journal.writing(jobs):
            journal._file.close()
            journal._file = full
            journal.begin(jobs[0])
    assert full.closed


def test_other_errors_in_a_file_are_their_own(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing such"), atomic_write(tmp_path / "a", overwrite=False):
        (tmp_path / "nothing such").read_text()
