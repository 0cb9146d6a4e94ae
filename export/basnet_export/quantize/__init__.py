"""INT8 and FP8: calibration, ranges, GPTQ, SmoothQuant, cross-layer equalization, and Q/DQ in the graph."""

__all__: list[str] = []
