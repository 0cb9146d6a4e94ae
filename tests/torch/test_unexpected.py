"""The log of defects: one line for the user, every traceback whole, whoever else writes."""

import multiprocessing
import threading
from pathlib import Path

import pytest

from basnet_torch import unexpected as module
from basnet_torch.unexpected import log_path, unexpected


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "basnet-deploy" / "unexpected.log"


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


def test_one_line_and_a_traceback(log):
    said = unexpected(Path("in/a.jpg"), raised(ValueError("two\n  lines")))
    assert said == f"in/a.jpg: unexpected: ValueError: two lines; traceback in {log}"
    text = log.read_text()
    assert "in/a.jpg: unexpected: ValueError: two lines" in text
    assert "Traceback (most recent call last)" in text
    assert "raise error" in text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "unexpected: MemoryError: there is not enough memory;"),
        (KeyError(), "unexpected: KeyError;"),
        (ValueError("x" * 900), f"unexpected: ValueError: {'x' * 200}...;"),
    ],
)
def test_what_an_error_does_not_say_and_what_it_says_too_long(log, error, told):
    assert f"a: {told}" in unexpected("a", raised(error))


def test_names_that_are_no_utf8(log):
    unexpected("a\udcff.jpg", raised(ValueError("b\udcfe")))
    assert b"a\xff.jpg" in log.read_bytes()


def write(number):
    for index in range(40):
        unexpected(f"{number}-{index}", raised(ValueError("x" * 50)))


@pytest.mark.parametrize("kind", [threading.Thread, multiprocessing.get_context("spawn").Process])
def test_many_writers_lose_nothing(log, kind):
    writers = [kind(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    entries = log.read_text().split("Traceback (most recent call last)")
    assert len(entries) == 3 * 40 + 1
    assert all(entry.count("unexpected: ValueError") == 1 for entry in entries[:-1])


def test_a_log_that_has_grown_is_put_aside_once(log, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 3000)
    for index in range(30):
        unexpected(f"picture-{index}", raised(ValueError("x" * 100)))
    assert sorted(path.name for path in log.parent.iterdir()) == ["unexpected.log", "unexpected.log.1"]
    assert all(path.stat().st_size <= 3000 for path in log.parent.iterdir())
    assert "picture-29" in log.read_text()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module._temporary_log.cache_clear()
    said = unexpected("a.jpg", raised(ValueError("b")))
    (log,) = tmp_path.glob("basnet-unexpected-*.log")
    assert said.endswith(f"; traceback in {log}")
    assert "Traceback" in log.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    module._temporary_log.cache_clear()
    assert unexpected("a.jpg", raised(ValueError("b"))).endswith("; its traceback could not be written")
    module._temporary_log.cache_clear()


def test_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(FileNotFoundError):
        log_path()
