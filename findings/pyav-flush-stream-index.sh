#!/usr/bin/env bash
# Expected: packet.stream_index equals packet.stream.index for all that demux() yields, so that packets may be sorted by it.
# Happens: the empty packets that close each stream at the end, which decoders need to give their last frames, have stream_index 0
#   in every stream. Sorted by it they all reach the first decoder. packet.stream is right.
# Library: PyAV 18.1.0
# Source: https://pyav.basswood-io.com/docs/stable/api/packet.html (Packet.stream, Packet.stream_index);
#   InputContainer.demux() in av/container/input.py
# Output:
#   closing packets, [stream_index, stream.index]: [[0, 0], [0, 1]]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python av==18.1.0 numpy==2.3.4 <<'PY'
import io

import av
import numpy as np

file = io.BytesIO()
with av.open(file, "w", format="mp4") as container:
    video = container.add_stream("mpeg4", rate=25)
    video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
    audio = container.add_stream("aac", rate=48000, layout="mono")
    picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
    picture.pts = 0
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
    sound.sample_rate = 48000
    for stream, frame in ((video, picture), (audio, sound)):
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
file.seek(0)
with av.open(file) as container:
    packets = [(packet.size > 0, packet.stream_index, packet.stream.index) for packet in container.demux()]
closing = [indices for full, *indices in packets if not full]
print("closing packets, [stream_index, stream.index]:", closing)
assert closing == [[0, 0], [0, 1]]
assert all(index == stream for full, index, stream in packets if full)
PY
