"""A thousand videos with mutated headers: each gives a result or one line; none crashes, hangs or eats memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

SUFFIXES = (".avi", ".flv", ".h264", ".mkv", ".mov", ".mp4", ".ts", ".webm")
COUNT = 125


def images():
    out = []
    for i in range(6):
        image = np.full((48, 64, 3), 20, np.uint8)
        image[8:24, 4 + i : 20 + i] = (230, 200, 180)
        out.append(image)
    return out


def seed(path, write_video):
    """A small clip with sound where the container takes it."""
    if path.suffix != ".webm":
        sound = None if path.suffix in (".avi", ".h264") else "aac"
        rotation = 90 if path.suffix in (".mp4", ".mov") else 0
        write_video(path, images(), audio=sound, pixels="yuv420p", rotation=rotation)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in images():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mutated_headers(tmp_path, write_video, suffix):
    seed(tmp_path / f"seed{suffix}", write_video)
    (tmp_path / "work").mkdir()
    script = Path(__file__).with_name("fuzz_video.py")
    command = [sys.executable, script, tmp_path / f"seed{suffix}", "0", str(COUNT), tmp_path / "work"]
    done = subprocess.run(command, check=False, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert counts["results"] + counts["refused"] == COUNT
    assert counts["refused"] > 0
    assert counts["peak_mb"] < 1000
