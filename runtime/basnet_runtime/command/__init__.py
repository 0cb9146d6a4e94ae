"""The `basnet-run` command: jobs, journal, pipes, watched folders, runs."""

__all__: list[str] = []
