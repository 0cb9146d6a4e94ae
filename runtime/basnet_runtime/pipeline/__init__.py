"""From source to sink: threads, bounded queues, stage times."""

__all__: list[str] = []
