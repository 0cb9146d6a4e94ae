"""Damaged headers: a short seeded form of the proof, and that the proof sees crashes, hangs and foreign errors."""

from __future__ import annotations

import random

import pytest

from tests.stress import fuzz
from tests.stress.fuzz import FuzzConfig, damaged, fuzz_pictures, seeds


def test_damaged_headers_do_no_harm():
    report = fuzz_pictures(FuzzConfig(inputs=230, seed=7))
    assert report, report.problems
    assert sum(report.read.values()) + sum(report.refused.values()) == 230
    assert sum(report.read.values()) > 20  # the damage is not so large that nothing gets past the first check
    assert len({*report.read, *report.refused}) == len(seeds())
    assert report.peak_mb < 400
    assert report.slowest_seconds < 20


def test_the_seeds_are_read(tmp_path):
    for name, data in seeds().items():
        path = tmp_path / name
        path.write_bytes(data)
        assert fuzz._read(path) == ("read 3" if name.startswith("animated") else "read 1")


def test_damage_is_repeatable_and_is_damage():
    data = seeds()[".png"]
    first, second = (damaged(data, random.Random(3)) for _ in range(2))
    assert first == second != data


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        ("import os; input(); os.abort()", "crashed with -6"),
        ("import time; input(); time.sleep(60)", "hung for"),
        ("input(); print('1.0\\t0.1\\tKeyError: x', flush=True); input()", "KeyError"),
    ],
)
def test_what_is_wrong_is_seen(monkeypatch, reader, told):
    monkeypatch.setattr(fuzz, "_READER", ("-c", reader))
    if "sleep" in reader:
        monkeypatch.setattr(fuzz, "_HUNG_SECONDS", 0.5)
    report = fuzz_pictures(FuzzConfig(inputs=1))
    assert not report
    assert told in report.problems[0]


@pytest.mark.stress
def test_thousands_of_damaged_headers():
    report = fuzz_pictures(FuzzConfig(inputs=3000))
    print(f"{sum(report.read.values())} read, {sum(report.refused.values())} refused, {report.peak_mb} MB at most")
    assert report, report.problems
