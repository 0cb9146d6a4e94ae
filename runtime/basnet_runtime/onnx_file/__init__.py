"""ONNX files read and adapted without onnx, onnxruntime or protobuf."""

__all__: list[str] = []
