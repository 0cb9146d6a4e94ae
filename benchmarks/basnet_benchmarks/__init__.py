"""Measures latency, parity and whole videos of what is deployed, against the PyTorch reference.

Importing this package loads no torch, onnxruntime or openvino.
"""

__all__: list[str] = []
