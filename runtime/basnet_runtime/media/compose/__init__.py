"""What is made of picture and mask: cut-outs, overlays, backgrounds, edges."""

__all__: list[str] = []
