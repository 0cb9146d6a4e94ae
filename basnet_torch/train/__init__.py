"""`basnet-train`: configuration, losses, training loop, validation and records."""

__all__: list[str] = []
