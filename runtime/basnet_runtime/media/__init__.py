"""Media: pictures and video to pixels and back, and compositing."""

__all__: list[str] = []
