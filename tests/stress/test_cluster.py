"""The driver of `--cluster` at a million planned pictures: memory and CPU time, against those of fewer."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("distributed")


def driven(count):
    words = [sys.executable, "-m", "tests.stress.cluster", "driver", str(count)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=900).stdout)


@pytest.mark.slow
def test_memory_and_time_of_the_driver_follow_the_pictures():
    small, large = driven(2_000), driven(20_000)
    print(small, large)
    assert large["peak_mb"] - small["peak_mb"] < 18_000 * 1.2 / 1000  # a million stays under 1 GB at 0.95 kB each
    assert large["cpu_us_a_picture"] < 2 * small["cpu_us_a_picture"]


@pytest.mark.stress
def test_a_million_pictures():
    found = driven(1_000_000)
    print(found)
    assert found["peak_mb"] < 1000
    assert found["cpu_us_a_picture"] < 60
