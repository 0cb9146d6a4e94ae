#!/usr/bin/env bash
# Expected: luma 235 of limited range is white. Converted to RGB it gives 255 from yuv420p, and from gray with the same
#   color range, all the more when the source range is passed to the conversion.
# Happens: gray gives 235. For gray formats libswscale takes the source for full range, whatever the frame or the caller says,
#   without a warning.
# Library: PyAV 18.1.0, with FFmpeg 8.1 (libswscale 9.5.102)
# Source: https://ffmpeg.org/ffmpeg-scaler.html (src_range), VideoFrame.reformat(src_color_range=) at
#   https://pyav.basswood-io.com/docs/stable/api/video.html; handle_jpeg() in libswscale
# Output:
#   limited-range white in RGB: {'yuv420p': [255, 255, 255], 'gray': [235, 235, 235]}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python av==18.1.0 numpy==2.3.4 <<'PY'
import av
from av.video.reformatter import ColorRange


def white(name):
    frame = av.VideoFrame(16, 16, name)
    for index, plane in enumerate(frame.planes):
        plane.update(bytes([128 if index else 235]) * plane.buffer_size)
    frame.color_range = ColorRange.MPEG
    converted = frame.reformat(format="rgb24", src_color_range=ColorRange.MPEG, dst_color_range=ColorRange.JPEG)
    return converted.to_ndarray()[0, 0].tolist()


result = {name: white(name) for name in ("yuv420p", "gray")}
print("limited-range white in RGB:", result)
assert result == {"yuv420p": [255, 255, 255], "gray": [235, 235, 235]}
PY
