#!/usr/bin/env bash
# Expected: where alpha is 255 (opaque), multiplying color by alpha, or dividing by it, changes nothing.
# Happens: both filters make 127 of the 256 values one darker, all from 129 to 255: white becomes 254.
# Library: PyAV 18.1.0, with FFmpeg 8.1 (libavfilter 11.14.102)
# Source: https://ffmpeg.org/ffmpeg-filters.html#premultiply and #unpremultiply; libavfilter/vf_premultiply.c
# Output:
#   white, opaque: premultiply 254 unpremultiply 254
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python av==18.1.0 numpy==2.3.4 <<'PY'
from fractions import Fraction

import av
import numpy as np

ramp = np.arange(256, dtype=np.uint8)


def filtered(name):
    frame = av.VideoFrame(256, 1, "gbrap")
    for index, plane in enumerate(frame.planes):
        plane.update((np.full(256, 255, np.uint8) if index == 3 else ramp).tobytes().ljust(plane.buffer_size, b"\0"))
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=256, height=1, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add(name, "inplace=1"), graph.add("buffersink")).configure()
    graph.push(frame)
    return np.frombuffer(graph.pull().planes[0], np.uint8)[:256].astype(int)


once = [filtered("premultiply"), filtered("unpremultiply")]
print("white, opaque: premultiply", once[0][255], "unpremultiply", once[1][255])
for result in once:
    assert (result - ramp == np.where(ramp > 128, -1, 0)).all()
PY
