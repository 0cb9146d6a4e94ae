"""From a trained checkpoint to a checked ONNX file.

Importing this package loads no torch and no onnx; `basnet_export.onnx_export.export_onnx` does the work.
"""

__all__: list[str] = []
