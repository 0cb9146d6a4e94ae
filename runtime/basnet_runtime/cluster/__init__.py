"""Cluster work: hand out pieces, check workers, survive dying ones.

Knows no pictures.
"""

__all__: list[str] = []
