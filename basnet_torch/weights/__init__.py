"""Names and forms of weights: the authors' keys, other tools' checkpoints, wider networks."""

__all__: list[str] = []
