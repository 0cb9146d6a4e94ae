#!/usr/bin/env bash
# Expected: a Gaussian blur leaves a flat image as it is, because the mask's weights add up to one. Integer arithmetic may round,
#   by less than one level.
# Happens: with integer precision a flat image of 200 becomes 204 at sigma 0.9 and 196 at sigma 3.3; 128 becomes 130 at sigma 3.
#   The vector code stores each weight in 8 bits and does not correct their sum; two passes add up. With float
#   precision, and with VIPS_NOVECTOR=1, the image stays as it is.
# Library: libvips 8.18.7 (pyvips 3.2.0, pyvips-binary 8.18.7), on a CPU that libvips has vector code for
# Source: https://www.libvips.org/API/current/method.Image.gaussblur.html (gaussmat and convsep run in turn);
#   vips_convi_intize() in libvips/convolution/convi.c
# Output:
#   flat 200, 128, 200 at sigma 0.9, 3, 3.3: integer [204, 130, 196] float [200, 128, 200]
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python pyvips==3.2.0 pyvips-binary==8.18.7 numpy==2.3.4 <<'PY'
import numpy as np
import pyvips


def blurred(value, sigma, precision):
    image = pyvips.Image.new_from_array(np.full((32, 32), value, np.uint8))
    result = image.gaussblur(sigma, precision=precision)
    assert result.min() == result.max()
    return int(result.min())


cases = [(200, 0.9), (128, 3.0), (200, 3.3)]
integer = [blurred(*case, "integer") for case in cases]
exact = [blurred(*case, "float") for case in cases]
print("flat 200, 128, 200 at sigma 0.9, 3, 3.3: integer", integer, "float", exact)
assert (integer, exact) == ([204, 130, 196], [200, 128, 200])
PY
