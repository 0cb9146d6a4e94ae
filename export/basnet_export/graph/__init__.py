"""ONNX graphs: modules, export, precision, FP32 layer search."""

__all__: list[str] = []
