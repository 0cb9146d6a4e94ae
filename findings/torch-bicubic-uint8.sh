#!/usr/bin/env bash
# Expected: interpolate() of a uint8 image gives what the same image gives as float, clamped to 0..255 and rounded: at most one
#   level apart.
# Happens: 15 levels apart (11 with antialias) where four squares of black and white meet. The image is resized along rows first, and what comes out is
#   clamped to 0..255 before it is resized along columns: overshoot that the second pass needs is lost.
# Library: torch 2.13.0 (CPU)
# Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html (overshoot of bicubic is
#   mentioned for the result alone); aten/src/ATen/native/cpu/UpSampleKernel.cpp
# Output:
#   uint8 and float apart: {'antialias=False': 14.93, 'antialias=True': 10.85}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
run_python torch==2.13.0 numpy==2.3.4 <<'PY'
import torch
from torch.nn.functional import interpolate

image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
image[..., :4, 4:] = image[..., 4:, :4] = 255
apart = {}
for antialias in (False, True):
    as_bytes = interpolate(image, size=(16, 16), mode="bicubic", antialias=antialias)
    as_float = interpolate(image.double(), size=(16, 16), mode="bicubic", antialias=antialias).clamp(0, 255)
    apart[antialias] = float((as_bytes - as_float).abs().max())
print("uint8 and float apart:", {f"antialias={name}": round(value, 2) for name, value in apart.items()})
assert min(apart.values()) > 8
PY
