"""From file to pixels and from pixels to file: pictures, video, compositing, and the planning of inputs and outputs."""

__all__: list[str] = []
