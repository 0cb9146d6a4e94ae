"""Inference backends, one module each behind one Protocol.

Each imports its library only when it is opened.
"""

__all__: list[str] = []
