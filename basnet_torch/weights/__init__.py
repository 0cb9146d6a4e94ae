"""Names and forms of weights: the authors' keys, other tools' checkpoints."""

__all__: list[str] = []
