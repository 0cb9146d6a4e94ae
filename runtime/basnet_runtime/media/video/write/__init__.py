"""Video out: container, encoder, copied streams, segments, numbered pictures."""

__all__: list[str] = []
