"""The `basnet-run` command: jobs, journal, pipes, watched folders, and the runs over pictures and video."""

__all__: list[str] = []
