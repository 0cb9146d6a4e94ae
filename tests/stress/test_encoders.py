"""Thousands of short videos through the encoders: none of them waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VIDEOS = {"h264": 500, "hevc": 200, "vp9": 500, "av1": 3000}
_MANY = """
import sys, threading
from fractions import Fraction
import av, numpy as np
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.media.video.stream_info import Color, VideoStreamInfo
from basnet_runtime.media.video.write.encoder import choose_encoder, open_encoder, set_up

codec, videos = sys.argv[1], int(sys.argv[2])
info = VideoStreamInfo(
    source="made", height=48, width=64, time_base=Fraction(1, 25), rate=Fraction(25), pixel_aspect=Fraction(1),
    color=Color(matrix=1, primaries=1, transfer=1, full_range=False), frames=0, seconds=0.0,
)
encoder = choose_encoder(codec, ".mkv", OutputKind.parse("overlay"), info, VideoOptions(codec=codec))
pictures = []
for i in range(14):
    picture = np.full((48, 64, 3), 20, np.uint8)
    picture[8:24, 4 + i : 20 + i] = (230, 200, 180)
    pictures.append(picture)

def write(context, count):
    packets = []
    for i in range(count):
        frame = av.VideoFrame.from_ndarray(pictures[i], format="rgb24").reformat(format=encoder.pixels)
        frame.pts, frame.time_base = i, info.time_base
        packets += context.encode(frame)
    assert len(packets + context.encode(None)) == count

for i in range(videos):
    context = av.CodecContext.create(encoder.library, "w")
    set_up(context, encoder, info)
    open_encoder(context)
    thread = threading.Thread(target=write, args=(context, 3 + i % 12))
    thread.start()
    thread.join()
"""


@pytest.mark.stress
@pytest.mark.parametrize("codec", VIDEOS)
def test_no_encoder_waits_for_ever(codec):
    """Three processes for each CPU: what waits for another thread is found when there are few CPUs."""
    command = [sys.executable, "-c", _MANY, codec, str(VIDEOS[codec])]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(3 * len(os.sched_getaffinity(0)))]
    try:
        assert [process.wait(timeout=600) for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()
            process.wait()
