#!/usr/bin/env bash
# Expected: resize keeps the picture where it is, whether it shrinks or grows: the documentation says that both follow the centre
#   convention, where pixel x of the result is point (x + 0.5) / scale of the source, its pixels' centers at 0.5.
# Happens: shrinking does. A picture that grows lies half a pixel of the result further right and down, by any factor and with any
#   kernel but nearest. A picture that grows along one axis alone lies off along that one. A mask that is enlarged so no longer fits
#   its picture, and shrinking it again does not undo it.
# Library: libvips 8.18.7 (pyvips 3.2.0, pyvips-binary 8.18.7)
# Source: https://www.libvips.org/API/current/method.Image.resize.html ("adds a 0.5 pixel displacement to the input pixels to get
#   centre convention scaling")
# Output:
#   moved by so many pixels of the result: grows [0.5, 0.5, 0.5, 0.5] shrinks [0.0, 0.0]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python pyvips==3.2.0 pyvips-binary==8.18.7 numpy==2.3.4 <<'PY'
import numpy as np
import pyvips

STEP = 4  # levels between neighboring pixels of a ramp, whose value says where one is
ramp = pyvips.Image.new_from_array(np.tile(np.arange(0, 240, STEP, dtype=np.float32), (60, 1)))


def moved(scale, kernel):
    found = ramp.resize(scale, kernel=kernel).numpy().astype(float)
    row = found[len(found) // 2]
    wanted = STEP * ((np.arange(len(row)) + 0.5) / scale - 0.5)
    middle = slice(len(row) // 3, 2 * len(row) // 3)  # no edges
    return abs(round(float(np.mean(wanted[middle] - row[middle])) / STEP * scale, 2))


grows = [moved(*case) for case in ((1.5, "linear"), (2, "cubic"), (2, "lanczos3"), (4, "lanczos3"))]
shrinks = [moved(*case) for case in ((0.8, "lanczos3"), (0.5, "lanczos3"))]
print("moved by so many pixels of the result: grows", grows, "shrinks", shrinks)
assert (grows, shrinks) == ([0.5] * 4, [0.0] * 2)
PY
