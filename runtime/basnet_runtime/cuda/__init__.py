"""Memory, streams and properties of NVIDIA GPUs, by cuda-core."""

__all__: list[str] = []
