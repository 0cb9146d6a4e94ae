#!/usr/bin/env bash
# Expected: white and opaque in a 10-bit AVIF are read as 65535, the top of libvips' 16-bit range, as they were saved.
# Happens: they come back as 65472, 1023 shifted by six bits. Alpha is then not opaque: flattened over black, white
#   loses as much again and becomes 65409. A lossless 12-bit file gives 65520.
# Library: libvips 8.18.7 (pyvips 3.2.0, pyvips-binary 8.18.7)
# Source: https://www.libvips.org/API/current/enum.Interpretation.html (rgb16), vips_flatten() (max-alpha 65535 for rgb16);
#   libvips/foreign/heifload.c
# Output:
#   white, its alpha, and flattened over black, by bits: {10: [65472, 65472, 65409], 12: [65520, 65520, 65505]}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python pyvips==3.2.0 pyvips-binary==8.18.7 <<'PY'
import pyvips

white = (pyvips.Image.black(16, 16, bands=4) + 65535).cast("ushort").copy(interpretation="rgb16")
loaded = {}
for bits in (10, 12):
    file = white.heifsave_buffer(compression="av1", lossless=True, bitdepth=bits)
    image = pyvips.Image.heifload_buffer(file)
    assert image.interpretation == "rgb16"
    loaded[bits] = [int(value) for value in (*image(0, 0)[2:], image.flatten(background=0)(0, 0)[0])]
print("white, its alpha, and flattened over black, by bits:", loaded)
assert loaded == {10: [65472, 65472, 65409], 12: [65520, 65520, 65505]}
PY
