"""The networks: BASNet, its encoders, and the baselines it is compared with, by name."""

__all__: list[str] = []
