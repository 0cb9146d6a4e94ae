"""TensorRT and TensorRT for RTX: library, preflight checks, engine, buffers."""

__all__: list[str] = []
