"""Watch folders: find new files that have stopped growing.

stable = StableFiles()
while True:
    jobs = plan(wanted=stable.wanted)     # asks about every file that is there
    stable.end_look()
    ...
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from basnet_runtime.command.jobs import Failure, Job, Plan, without_finished
from basnet_torch.errors import UsageError
from basnet_torch.files import file_identity

__all__ = ["LOOK_SECONDS", "StableFiles", "check_watched", "one_by_one"]

LOOK_SECONDS = 1.0
_LOOKS = 3  # of the same size and time before a file counts as whole


class StableFiles:
    """Detect files that have stopped changing, look after look."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[list[str | int], int]] = {}
        self._now: dict[Path, tuple[list[str | int], int]] = {}

    def wanted(self, path: Path) -> bool:
        """Whether the file has just stopped changing; once for each change."""
        try:
            identity = file_identity(path)
        except OSError:
            return False
        before, looks = self._seen.get(path, (None, 0))
        looks = looks + 1 if before == identity else 1
        self._now[path] = identity, min(looks, _LOOKS + 1)
        return looks == _LOOKS and identity[1] != 0  # an empty file is a copy that has only begun

    def end_look(self) -> None:
        """Forget files that are gone."""
        self._seen, self._now = self._now, {}


def check_watched(inputs: Sequence[str]) -> None:
    """Refuse inputs that cannot be watched.

    Raises:
        UsageError: An input is no folder.
    """
    for text in inputs:
        if not Path(text).is_dir():
            raise UsageError(f"{text}: is not a folder; --watch takes folders")


def one_by_one(
    plan: Plan, *, overwrite: bool, skip_existing: bool, finished: frozenset[Path]
) -> tuple[list[Job], list[Failure]]:
    """Split a look's jobs: what `without_finished` refuses fails job by job."""
    jobs: list[Job] = []
    failures = list(plan.failures)
    targets: dict[Path, Job] = {}
    for job in plan.jobs:
        alone = Plan(jobs=(job,))
        try:
            if (other := targets.setdefault(job.target, job)) is not job:
                raise UsageError(f"{job.source}: {job.target} is made of {other.source} already; use --keep-suffix")
            jobs += without_finished(alone, overwrite=overwrite, skip_existing=skip_existing, finished=finished).jobs
        except UsageError as error:
            failures.append(Failure(source=job.source, error=str(error)))
    return jobs, failures
