#!/usr/bin/env bash
# Expected: INTER_AREA averages each axis that shrinks. Rows of 0 and 200 in turn, 100 of them brought down to 10, give
#   100, whatever happens to the width.
# Happens: if the other axis grows, even by one pixel, no axis is averaged. Two source rows are mixed for each row of the
#   result, the other eight are dropped: the same picture becomes 20 and not 100.
# Library: opencv-python-headless 4.14.0.94
# Source: modules/imgproc/include/opencv2/imgproc.hpp, InterpolationFlags: INTER_AREA is "preferred for image decimation" and
#   free of moire; only when the image is zoomed is it like INTER_NEAREST. resize.cpp in modules/imgproc/src takes the area
#   path only for scale_x >= 1 and scale_y >= 1.
# Output:
#   mean of the result by its width: {999: 100.0, 1000: 100.0, 1001: 20.0}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python opencv-python-headless==4.14.0.94 numpy==2.3.4 <<'PY'
import cv2
import numpy as np

image = np.zeros((100, 1000), np.uint8)
image[::2] = 200
means = {width: float(cv2.resize(image, (width, 10), interpolation=cv2.INTER_AREA).mean()) for width in (999, 1000, 1001)}
print("mean of the result by its width:", means)
assert means == {999: 100, 1000: 100, 1001: 20}
PY
