"""TensorRT engines: build configuration, network, build, cache and inspection."""

__all__: list[str] = []
