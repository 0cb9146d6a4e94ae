"""Atomic writes, and the token that tells hosts apart in shared folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from basnet_torch.errors import MediaError
from basnet_torch.files import atomic_write, host_token, remove_scratch, scratch_folder


def test_the_token_is_of_the_host(tmp_path, monkeypatch):
    boot = tmp_path / "boot_id"
    boot.write_text("a\n")
    token = host_token.__wrapped__  # the host does not change while a process runs
    first = token(boot)
    assert first == token(boot) != host_token()
    assert len(first) == len(host_token()) == 8
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))
    assert token(boot) != first
    boot.write_text("b\n")
    assert len({first, token(boot), token(tmp_path / "none")}) == 3


def test_an_atomic_write_appears_or_not(tmp_path):
    target = tmp_path / "new" / "a.bin"

    def half():
        with atomic_write(target, overwrite=False) as path:
            path.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list((tmp_path / "new").iterdir()) == []
    with atomic_write(target, overwrite=False) as path:
        path.write_bytes(b"whole")
        assert not target.exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_an_atomic_write_does_not_replace_what_appeared_meanwhile(tmp_path):
    target = tmp_path / "a.bin"

    def late():
        with atomic_write(target, overwrite=False) as path:
            path.write_bytes(b"new")
            target.write_bytes(b"theirs")

    with pytest.raises(MediaError, match="exists already"):
        late()
    assert target.read_bytes() == b"theirs"
    assert [p.name for p in Path(tmp_path).iterdir()] == ["a.bin"]


def test_an_atomic_write_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with atomic_write(tmp_path / "a", overwrite=False) as path:
        path.write_bytes(b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_scratch_of_killed_processes_is_removed_and_no_other(tmp_path, monkeypatch):
    holds = (
        "from basnet_torch.files import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'big.bin').touch()\n"
        "    print(folder, flush=True)\n"
        "    input()\n"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = tmp_path / "basnet-00000000-other"  # of another host, whose locks are not seen everywhere
    foreign.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        theirs = Path(process.stdout.readline().strip())
        with scratch_folder() as own:
            remove_scratch()
            assert set(tmp_path.iterdir()) == {theirs, own, foreign}
        process.kill()
        process.wait()
        assert (theirs / "big.bin").exists()
        with scratch_folder() as own:
            assert set(tmp_path.iterdir()) == {own, foreign}
        assert set(tmp_path.iterdir()) == {foreign}
    finally:
        process.kill()
        process.communicate()
