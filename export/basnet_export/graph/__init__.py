"""The ONNX graph: the deployed network as modules, its export, precision, and the layers that stay FP32."""

__all__: list[str] = []
