"""This machine: CPU features, threads this process may use, installed packages."""

__all__: list[str] = []
