"""Video in: opening, reading, times, pixels, what a stream says of itself."""

__all__: list[str] = []
