"""Pictures in and out, in every format."""

__all__: list[str] = []
