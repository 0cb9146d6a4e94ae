#!/usr/bin/env bash
# Expected: alpha has no limited range, and both formats store it in 8 bits, so that converting RGBA to YUVA copies it.
# Happens: all values from 128 to 254 come out one higher, so that 254 (nearly opaque) becomes 255 (opaque). The way back copies
#   them: alpha that goes through yuva420p or yuva444p is not what it was.
# Library: PyAV 18.1.0, with FFmpeg 8.1 (libswscale 9.5.102)
# Source: AVCOL_RANGE_MPEG in libavutil/pixfmt.h (limits luma and chroma, alpha is not among them); the 15-bit intermediate of
#   alpha in libswscale/input.c and output.c
# Output:
#   alpha one higher, first, last, count: {'yuva420p': ([128, 254], 127), 'yuva444p': ([128, 254], 127)}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python av==18.1.0 numpy==2.3.4 <<'PY'
import av
import numpy as np

alpha = np.arange(256)
image = np.full((2, 256, 4), 100, np.uint8)
image[..., 3] = alpha
frame = av.VideoFrame.from_ndarray(image, "rgba")
higher = {}
for name in ("yuva420p", "yuva444p"):
    converted = frame.reformat(format=name)
    plane = np.frombuffer(converted.planes[3], np.uint8)[:256]
    back = converted.reformat(format="rgba").to_ndarray()[0, :, 3]
    assert (plane == back).all()
    assert set((plane - alpha).tolist()) == {0, 1}
    higher[name] = np.flatnonzero(plane != alpha)[[0, -1]].tolist(), int((plane != alpha).sum())
print("alpha one higher, first, last, count:", higher)
assert all(value == ([128, 254], 127) for value in higher.values())
PY
