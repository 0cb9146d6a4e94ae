"""Benchmarks: latency, parity and video of deployed models against PyTorch.

Importing this package loads no torch, onnxruntime or openvino.
"""

__all__: list[str] = []
