"""The networks by name: BASNet, its encoders, and the baselines for comparison."""

__all__: list[str] = []
