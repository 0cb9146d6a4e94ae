"""Memory, streams, events and graphs of NVIDIA GPUs, by one of two libraries."""

__all__: list[str] = []
