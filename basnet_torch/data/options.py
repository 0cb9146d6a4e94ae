"""Choices about a data set; loads no OpenCV."""

from __future__ import annotations

from typing import Literal

__all__ = ["MaskValues", "OnBadPair"]

OnBadPair = Literal["refuse", "skip"]
MaskValues = Literal["auto", "gray", "labels", "trimap"]
