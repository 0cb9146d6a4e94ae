"""Every error a user can meet, as one tree.

A message names the value, the rule and the fix in one line. `exit_code` is what a command returns.

BasnetError                  1
├── UsageError               2   (also ValueError)
├── CheckpointError          1   (also ValueError)
├── DataError                1   (also ValueError)
│   ├── BadPairError         1
│   └── MaskValuesError      1
├── TrainingError            1   (also ArithmeticError)
├── ExportError              1   (also RuntimeError)
│   └── EngineBuildError     1
├── ModelFileError           1   (also ValueError)
├── MediaError               1   (also OSError)
├── BackendUnavailable       3   (also ImportError)
└── ParityError              4   (also AssertionError)
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

__all__ = [
    "BackendUnavailable",
    "BadKind",
    "BadPairError",
    "BasnetError",
    "CheckpointError",
    "DataError",
    "EngineBuildError",
    "ExportError",
    "MaskValuesError",
    "MediaError",
    "ModelFileError",
    "ParityError",
    "TrainingError",
    "UsageError",
    "exit_on_error",
]


_OF_THE_SYSTEM = (
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
)


BadKind = Literal["unequal", "unreadable", "ignored", "unexpected"]


class BasnetError(Exception):
    """An error that the user can fix; commands print its message without a traceback."""

    exit_code = 1


class UsageError(BasnetError, ValueError):
    """The command or call was given values that do not go together."""

    exit_code = 2


class CheckpointError(BasnetError, ValueError):
    """A checkpoint is not one, is damaged, or belongs to another network."""


class DataError(BasnetError, ValueError):
    """Training or test data is missing, unpaired or unreadable."""


class BadPairError(DataError):
    """A pair of a data set cannot be used; `kind` is its heading in the data report."""

    def __init__(self, message: str, *, kind: BadKind = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


class MaskValuesError(DataError):
    """The masks of a data set hold other values than the run reads.

    Skipping pairs does not fix it.
    """


class TrainingError(BasnetError, ArithmeticError):
    """Training cannot continue, for example because a loss term is not finite."""


class ExportError(BasnetError, RuntimeError):
    """A graph could not be written or did not pass its own checks."""


class EngineBuildError(ExportError):
    """TensorRT cannot parse the graph or build its engine.

    Or the engine differs from what its name says.
    """


class ModelFileError(BasnetError, ValueError):
    """A model file is unreadable, of an unknown kind, or contradicts its manifest."""


class MediaError(BasnetError, OSError):
    """A picture or video cannot be read or written."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BackendUnavailable(BasnetError, ImportError):
    """The asked backend, provider or device is not there."""

    exit_code = 3


class ParityError(BasnetError, AssertionError):
    """An artifact does not compute what its checkpoint computes."""

    exit_code = 4


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a `BasnetError` into one line and its exit code, and Ctrl-C into 130.

    So does what the system says of a file that may not be touched, has too long a name or no room. Anything else is a
    defect of this program and keeps its traceback.
    """
    try:
        yield
    except BasnetError as error:
        _tell(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        name = error.filename if isinstance(error.filename, str | bytes) else "output"
        _tell(f"error: {os.fsdecode(name)}: {error.strerror}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _tell("interrupted")
        raise SystemExit(130) from None


def _tell(line: str) -> None:
    if sys.stderr is not None:  # closed by the caller; print would take stdout, where a result may be
        print(line, file=sys.stderr)  # noqa: T201 - the one place that prints for all commands
