"""`basnet-serve`: the model over HTTP, by its own routes and by the Open Inference Protocol v2."""

__all__: list[str] = []
