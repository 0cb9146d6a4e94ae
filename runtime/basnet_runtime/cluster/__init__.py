"""Many machines: hand out pieces of work, check the workers, survive what dies; knows no pictures."""

__all__: list[str] = []
