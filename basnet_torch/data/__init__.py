"""Training data: pairs found, decoded, told apart, cropped and put in batches."""

__all__: list[str] = []
