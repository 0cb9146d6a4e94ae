"""How many threads are allowed, against made-up cgroup trees of both versions."""

from __future__ import annotations

import os

import pytest

from basnet_runtime.machine import threads
from basnet_runtime.machine.threads import allowed_threads, cgroup_quota


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def proc(tmp_path):
    path = tmp_path / "proc"
    path.write_text("0::/\n")
    return path


def test_no_cgroup_is_no_quota(tmp_path, proc):
    assert cgroup_quota(tmp_path / "none", tmp_path / "nothing") is None
    assert cgroup_quota(tmp_path, proc) is None


@pytest.mark.parametrize(("text", "quota"), [("max 100000", None), ("150000 100000", 1.5), ("50000 100000", 0.5)])
def test_version_2(tmp_path, proc, text, quota):
    write(tmp_path, cpu__max=text)
    assert cgroup_quota(tmp_path, proc) == quota


def test_the_smallest_group_above_counts(tmp_path, proc):
    proc.write_text("0::/a/b/c\n")
    write(tmp_path / "a", cpu__max="300000 100000")
    write(tmp_path / "a" / "b", cpu__max="200000 100000")
    write(tmp_path / "a" / "b" / "c", cpu__max="max 100000")
    assert cgroup_quota(tmp_path, proc) == 2


@pytest.mark.parametrize(("quota", "expected"), [("400000", 4), ("-1", None)])
def test_version_1(tmp_path, proc, quota, expected):
    proc.write_text("4:cpu,cpuacct:/box\n3:memory:/other\n")
    write(tmp_path / "cpu,cpuacct" / "box", **{"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"})
    assert cgroup_quota(tmp_path, proc) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (2.5, 3), (0.2, 1), (64, 6)])
def test_allowed_is_the_smaller(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    assert allowed_threads() == expected
