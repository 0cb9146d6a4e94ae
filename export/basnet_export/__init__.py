"""From a trained checkpoint to a checked ONNX file.

Importing this package loads no torch and no onnx; `basnet_export.graph.onnx_graph.export_onnx` does the work.
"""

__all__: list[str] = []
