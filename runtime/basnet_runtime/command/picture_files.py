"""Picture files as source and sink of the pipeline; a bad file fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from basnet_runtime.command.jobs import Failure, Job, failure_of
from basnet_runtime.command.journal import Journal, noted
from basnet_runtime.frame import Frame, ResultFrame
from basnet_runtime.media.image.metadata import surviving
from basnet_runtime.media.image.pictures import DEFAULT_MAX_PIXELS, PictureFile, write_picture
from basnet_runtime.pipeline.queues import ByteBudget
from basnet_runtime.salience import SalienceDecision

__all__ = ["PictureSink", "PictureSource"]


class PictureSource:
    """Decode the inputs of jobs; a frame's index is its job's.

    Attributes:
        failures: Inputs that could not be read.
        aside: Inputs that are too large to be read as a whole.
        notes: Index of a job to what a user should know about how its input was read.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        page: int | None = None,
        check_size: Callable[[str, int, int], None] = lambda *_: None,
        put_aside: int | None = None,
    ) -> None:
        """Get ready.

        Args:
            jobs: What to read.
            max_pixels: Larger pictures are refused.
            page: Of files of several pictures the one of that number, from 1; None takes the main one.
            check_size: Called with a picture's path, height and width; raises BasnetError to refuse it.
            put_aside: Pictures above this many pixels are not read but noted in `aside`.
        """
        self._put_aside = put_aside
        self.aside: list[Job] = []
        self._jobs = jobs
        self._check_size = check_size
        self._max_pixels = max_pixels
        self._page = page
        self.failures: list[Failure] = []
        self.notes: dict[int, list[str]] = {}

    def frames(self, budget: ByteBudget | None = None) -> Iterator[Frame]:
        """Every picture that can be read."""
        for index in range(len(self._jobs)):
            frame = self._read(index, budget)
            if frame is not None:
                yield frame

    def close(self) -> None:
        """Nothing stays open between pictures."""

    def _read(self, index: int, budget: ByteBudget | None) -> Frame | None:
        path = self._jobs[index].source
        try:
            with PictureFile(path, max_pixels=self._max_pixels, page=self._page) as picture:
                pixels = picture.height * picture.width
                if self._put_aside is not None and picture.has_strips and pixels > self._put_aside:
                    self.aside.append(self._jobs[index])
                    return None
                if budget is not None:
                    budget.wait(picture.nbytes)
                frame = picture.read(index)
                self._check_size(str(path), *frame.image_HWC.shape[:2])
                self.notes[index] = picture.notes
                return frame
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this input's alone
            self.failures.append(failure_of(path, error))
        return None


class PictureSink:
    """Writes the outputs of jobs.

    Attributes:
        failures: Inputs whose output could not be written.
        written: Index of a job to whether anything salient was found in it.
    """

    def __init__(self, jobs: Sequence[Job], *, overwrite: bool, journal: Journal | None = None) -> None:
        self._jobs = jobs
        self._overwrite = overwrite
        self._journal = journal
        self.failures: list[Failure] = []
        self.written: dict[int, SalienceDecision] = {}

    def write(self, item: ResultFrame) -> None:
        """Write one picture in one atomic step."""
        job = self._jobs[item.frame.index]
        try:
            with noted(self._journal, job):
                metadata = surviving(item.frame.metadata, is_mask=item.pixels.ndim == 2)
                write_picture(job.target, item.pixels, item.alpha_HW, metadata=metadata, overwrite=self._overwrite)
        except Exception as error:  # noqa: BLE001 - as above
            self.failures.append(failure_of(job.source, error))
        else:
            self.written[item.frame.index] = item.decision

    def finish(self) -> None:
        """Every picture is final already."""

    def abort(self) -> None:
        """Every picture is whole already."""

    def interrupt(self) -> None:
        """Every picture is whole already."""
