"""Memory, streams, events and graphs of NVIDIA GPUs, by one of two libraries behind one small protocol."""

__all__: list[str] = []
