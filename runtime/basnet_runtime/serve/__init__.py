"""`basnet-serve`: the model over HTTP, own routes and Open Inference Protocol v2."""

__all__: list[str] = []
