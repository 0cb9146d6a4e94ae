"""INT8 and FP8: calibration, ranges, weight rounding and Q/DQ graphs."""

__all__: list[str] = []
