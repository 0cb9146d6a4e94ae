#!/usr/bin/env bash
# Expected: a flat gray frame 321 pixels wide comes back gray from ProRes 422: its chroma planes are 161 wide, and all
#   of their columns are encoded, as for 323 pixels.
# Happens: if the width is a multiple of 16 plus 1, the last chroma column comes back as 4 and not 512, which shows as a
#   green edge. The encoder takes width >> 1 for the width of a chroma plane. In the last macroblock this leaves no column
#   at all, and its coefficients become zero. At other odd widths the column before is repeated.
# Library: PyAV 18.1.0, with FFmpeg 8.1 (libavcodec 62.28.102), encoder prores_ks
# Source: av_image_fill_plane_sizes() and AVPixFmtDescriptor in libavutil (a chroma plane is -((-width) >> 1) wide);
#   find_slice_quant() in libavcodec/proresenc_kostya.c
# Output:
#   last chroma column by width, 512 encoded: {320: [512], 321: [4], 322: [512], 323: [512], 337: [4]}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python av==18.1.0 numpy==2.3.4 <<'PY'
import io

import av
import numpy as np


def last_chroma(width):
    frame = av.VideoFrame(width, 32, "yuv422p10le")
    for plane, value in zip(frame.planes, (400, 512, 512)):
        plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
    frame.pts = 0
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as container:
        stream = container.add_stream("prores_ks", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, 32, "yuv422p10le"
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        plane = next(container.decode(video=0)).planes[1]
        columns = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)[:, : plane.width]
    assert (columns[:, :-1] == 512).all()
    return sorted({int(value) for value in columns[:, -1]})


last = {width: last_chroma(width) for width in (320, 321, 322, 323, 337)}
print("last chroma column by width, 512 encoded:", last)
assert last == {320: [512], 321: [4], 322: [512], 323: [512], 337: [4]}
PY
