#!/usr/bin/env bash
# Expected: a decoded frame that nobody holds any more gives its memory back at once, as all objects of CPython do, whichever of
#   its attributes were read.
# Happens: reading `frame.side_data` once, even where it is empty, ties the frame into a reference cycle (the container of side
#   data is kept by the frame, and keeps the frame). Decoded pictures then stay in memory until the garbage collector happens to
#   run, which counts objects and not bytes. (One frame, the decoder's last, is kept in either case.)
# Library: av 18.1.0
# Source: https://pyav.basswood-io.com/docs/stable/api/frame.html (side_data is documented as a plain attribute);
#   https://docs.python.org/3/glossary.html#term-reference-count
# Output:
#   kept of 60 frames without side_data: 1; after reading it: 61
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python av==18.1.0 numpy==2.3.4 <<'PY'
import gc

import av
import numpy as np

with av.open("clip.mkv", "w") as target:
    stream = target.add_stream("ffv1", rate=25)
    stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
    for index in range(60):
        image = np.full((240, 320, 3), index, np.uint8)
        target.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    target.mux(stream.encode())


def kept(read):
    """Frames that are still there while the next one is decoded."""
    gc.collect()
    gc.disable()
    before = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    with av.open("clip.mkv") as source:
        for frame in source.decode(video=0):
            if read:
                assert len(list(frame.side_data)) == 0
        del frame
        after = sum(isinstance(each, av.VideoFrame) for each in gc.get_objects())
    gc.enable()
    return after - before


plain, read = kept(False), kept(True)
print(f"kept of 60 frames without side_data: {plain}; after reading it: {read}")
assert plain <= 1
assert read > 30
PY
