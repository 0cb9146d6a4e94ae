"""Engines that run a network, one module each behind one Protocol; each imports its library only when it is opened."""

__all__: list[str] = []
