"""Parity of backends, precisions and exported files with a PyTorch checkpoint.

An adopted network has no checkpoint: its own file in ONNX Runtime is the reference.

report = measure_parity(ParityConfig(reference=Path("basnet.pth"), pictures=Path("dev")))
raise SystemExit(report.exit_code)

The contract is `basnet_runtime/parity.toml`. What could not run was not proven, and that is never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.candidates import (
    BACKENDS,
    MASKS,
    MEASURED_DEVICE,
    PICTURES,
    REFERENCE,
    THREADS,
    Candidate,
    ModelSource,
    candidates_of,
    parse_choices,
    parse_device,
)
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.report import PANELS, Panel, heat_map, thumbnails
from basnet_export.reference import Reference, RememberingModel
from basnet_runtime.backends.pytorch import read_checkpoint
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.manifest import read_manifest
from basnet_runtime.model import SaliencyModel
from basnet_runtime.model_files import model_kind
from basnet_runtime.parity import Difference, ParityReport, Picture
from basnet_torch.data.options import MaskValues, OnBadPair
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, BadPairError, UsageError
from basnet_torch.files import scratch_folder
from basnet_torch.options import argument

__all__ = ["ParityConfig", "ParityResult", "ParityRow", "Pictures", "measure_parity"]

Verdict = Literal["passed", "failed", "not proven"]
PARITY_FAILED = 4
UNPROVEN = 3
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityConfig:
    """Parity configuration; PyTorch runs on the candidates' GPU where it can."""

    reference: Path = field(
        metadata=argument("REFERENCE", "Checkpoint, for PyTorch FP32; or an adopted .onnx, for ONNX Runtime.")
    )
    candidates: tuple[Path, ...] = field(
        default=(), metadata=argument("[CANDIDATE]...", ".onnx, .plan or checkpoint. Default: REFERENCE, exported.")
    )
    pictures: Path | None = field(default=None, metadata=PICTURES)
    mask_values: MaskValues = field(default="auto", metadata=MASKS)
    threads: int | None = field(default=None, metadata=THREADS)
    backends: tuple[str, ...] = field(default=(), metadata=BACKENDS)
    device: Device = field(default=CPU, metadata=MEASURED_DEVICE)
    panels: bool = field(default=False, metadata=PANELS)

    def __post_init__(self) -> None:
        kind = model_kind(self.reference)
        if kind != "checkpoint" and not (kind == "onnx" and read_manifest(self.reference).original):
            raise UsageError(
                f"reference {self.reference}: is none; give the exported checkpoint, or the .onnx that was adopted"
            )
        if len({path.name for path in self.candidates}) < len(self.candidates):
            raise UsageError(f"candidates {', '.join(map(str, self.candidates))}: each needs a name of its own")
        parse_choices(self.backends)
        parse_device(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityRow:
    """One candidate."""

    JSON: ClassVar = (
        *("model", "file", "fingerprint", "backend", "precision", "runs_on", "verdict", "remarks"),
        *("report", "pictures"),
    )
    model: str  # name of the file
    backend: str  # library
    precision: str  # arithmetic
    runs_on: str = ""  # what the backend says of itself; empty when it did not run
    report: ParityReport | None = None  # what was measured; None when it did not run
    reason: str = ""  # why it did not run
    file: str = ""  # where the file is; empty for one that was exported for this run alone
    fingerprint: str = ""  # which network, see `fingerprint_of`
    panels: tuple[Panel, ...] = ()  # the worst pictures, when they were asked for

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model}, {self.backend} {self.precision}"

    @property
    def verdict(self) -> Verdict:
        """`not proven` where it did not run, or ran on flat reference masks only."""
        if self.report is None or (self.report.flat and len(self.report.failures) == 1):
            return "not proven"
        return "passed" if self.report else "failed"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Each reason for the verdict, when it is no pass."""
        return (self.reason,) if self.report is None else self.report.failures

    @property
    def pictures(self) -> tuple[Difference, ...]:
        """What was measured on each picture."""
        return () if self.report is None else self.report.differences


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityResult:
    """A whole run."""

    JSON: ClassVar = (
        *("command", "reference", "reference_file", "reference_runs_on", "pictures"),
        *("environment", "candidates", "exit_code"),
    )
    command: ClassVar = "parity"
    reference: str  # name of the checkpoint
    reference_runs_on: str  # what ran it
    pictures: str  # where the pictures came from
    environment: Environment  # where all of it ran
    candidates: tuple[ParityRow, ...]  # one row each
    asked: bool  # whether backends were asked by name, so that one that is not there is an error
    reference_file: str = ""  # where the checkpoint is

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The worst pictures of every candidate."""
        return tuple(panel for row in self.candidates for panel in row.panels)

    @property
    def exit_code(self) -> int:
        """4 when a candidate failed; 3 when none or not every chosen one ran; else 0."""
        if any(row.report is not None and not row.report for row in self.candidates):
            return PARITY_FAILED
        unproven = [row for row in self.candidates if row.report is None]
        return UNPROVEN if unproven and (self.asked or len(unproven) == len(self.candidates)) else 0

    @property
    def complaint(self) -> str:
        """Why the exit code is not 0, in one line; empty when it is."""
        if not self.exit_code:
            return ""
        ran = self.exit_code == PARITY_FAILED
        rows = [
            row for row in self.candidates if (row.report is not None and not row.report if ran else row.report is None)
        ]
        return "; ".join(f"{row.verdict}: {row.name}: {', '.join(row.remarks)}" for row in rows)


class Pictures:
    """Pictures of a folder or data set, with truth if present; reread in every pass.

    A folder with pictures directly in it is a folder of pictures, unless masks lie beside them. Anything else, zip
    files included, must be laid out as one of the data sets `basnet_torch.data.datasets` knows. `report` says what the
    last pass found, as training does, and `failures` names the pairs that it left out, and why.
    """

    def __init__(self, source: Path | None, *, mask_values: MaskValues = "auto", on_bad: OnBadPair = "refuse") -> None:
        """`None` takes the bundled photographs; `on_bad` handles an unreadable pair.

        Raises:
            UsageError: There is no such folder, or nothing in it.
            DataError: The data set's layout is not known, or pictures and masks do not pair.
        """
        from basnet_export.samples import load_pictures
        from basnet_torch.data.datasets import DataReport, find_pairs

        self.name = str(source) if source else "bundled photographs"
        self.report, self.failures = DataReport(), list[tuple[str, str]]()
        self._values, self._on_bad, self._unpaired = mask_values, on_bad, DataReport()
        self.has_truth = source is not None and _is_data_set(source)
        self._pictures = [] if self.has_truth else load_pictures(source)
        self._pairs = find_pairs([source], on_bad=on_bad, report=self._unpaired) if source and self.has_truth else []

    def __iter__(self) -> Iterator[Picture]:
        if not self.has_truth:
            yield from self._pictures
            return
        from basnet_torch.data.datasets import DataReport, read_pair
        from basnet_torch.data.masks import Held, check_labels

        lacking = {"picture": self._unpaired.without_picture, "mask": self._unpaired.without_mask}
        self.report = DataReport(without_mask=lacking["mask"], without_picture=lacking["picture"])
        self.failures = [(name, f"{name}: has no {what}") for what, names in lacking.items() for name in names]
        held: set[Held] = set()
        for pair in self._pairs:
            try:
                image, truth = read_pair(pair, self._values)
            except BadPairError as error:
                if self._on_bad == "refuse":
                    raise
                self.report.count(pair, error)
                self.failures.append((pair.name, str(error)))
                continue
            self.report.count(pair, None, truth.odd)
            held |= truth.holds
            truth_HW = truth.mask_HW.astype(np.float32) / np.float32(255)
            yield Picture(name=pair.name, image_HWC=image, truth_HW=truth_HW, ignored_HW=truth.ignored_HW)
        if self.report.pairs:
            check_labels(self.name, self._values, held)


def _is_data_set(source: Path) -> bool:
    from basnet_runtime.media.image.pictures import is_picture
    from basnet_torch.data.layouts import masks_beside

    if not source.exists():
        raise UsageError(f"{source}: no such folder of pictures or data set")
    if not source.is_dir():
        return True
    names = [path.name for path in source.iterdir() if path.is_file() and is_picture(path)]
    return not names or bool(masks_beside(source, names))


def measure_parity(config: ParityConfig, progress: _Progress = lambda _: None) -> ParityResult:
    """Compare every candidate with the reference on every picture.

    Raises:
        BackendUnavailable: PyTorch, which runs the reference, is not there.
        BasnetError: A model or picture cannot be read, or a backend runs none of the candidates.
    """
    threads = config.threads or allowed_threads()
    pictures = Pictures(config.pictures, mask_values=config.mask_values)
    with scratch_folder() as folder, ExitStack() as stack:
        source = ModelSource(str(config.reference), Path(mkdtemp(dir=folder)), progress)
        reference: Reference | RememberingModel
        if source.checkpoint:
            checkpoint = read_checkpoint(source.checkpoint)
            reference = Reference(checkpoint, (), _reference_device(config), threads)
        else:
            variant = source.reference or REFERENCE
            own = Candidate(source=source, variant=variant, device=CPU, threads=threads)
            reference = RememberingModel(stack.enter_context(own.open()))
        runs_on = reference.description  # opened first, so that a missing library is reported before any export
        rows = tuple(
            _row(candidate, reference, pictures, config.panels, progress)
            for candidate in _candidates(config, source, folder, threads, progress)
        )
        return ParityResult(
            reference=source.name,
            reference_runs_on=runs_on,
            pictures=pictures.name,
            environment=environment(threads),
            candidates=rows,
            asked=bool(config.backends),
            reference_file=str(config.reference),
        )


def _reference_device(config: ParityConfig) -> Device:
    """The candidates' CUDA device where PyTorch sees one; another device's sums would be part of the difference."""
    if config.device == CPU:
        return CPU
    import torch

    return Device.parse(config.device.for_torch()) if torch.cuda.is_available() else CPU


def _candidates(
    config: ParityConfig, reference: ModelSource, folder: Path, threads: int, progress: _Progress
) -> Sequence[Candidate]:
    """Everything to compare; the reference's own variant is left out, because it would be compared with itself."""
    sources = [
        reference
        if path.exists() and path.samefile(config.reference)
        else ModelSource(str(path), Path(mkdtemp(dir=folder)), progress)
        for path in config.candidates
    ] or [reference]
    found = candidates_of(sources, parse_choices(config.backends), config.device, threads)
    found = [c for c in found if not (c.source is reference and c.variant == reference.reference)]
    if not found:
        raise UsageError(f"backend {', '.join(config.backends)}: is the reference itself; give another to compare")
    return found


def _row(
    candidate: Candidate,
    reference: Reference | RememberingModel,
    pictures: Pictures,
    panels: bool,  # noqa: FBT001
    progress: _Progress,
) -> ParityRow:
    progress(f"comparing {candidate.name}")
    variant = candidate.variant
    row = ParityRow(
        model=candidate.source.name,
        backend=variant.backend,
        precision=variant.arithmetic,
        file=candidate.source.file,
        fingerprint=candidate.source.fingerprint,
    )
    try:
        model = candidate.open()
    except BackendUnavailable as error:
        return replace(row, reason=str(error))
    with model:
        report = reference.report(model, candidate.contract, pictures)
        shown = tuple(_panels(row.name, report, reference, model, pictures)) if panels else ()
        return replace(row, runs_on=model.backend.description, report=report, panels=shown)


def _panels(
    name: str, report: ParityReport, reference: Reference | RememberingModel, model: SaliencyModel, pictures: Pictures
) -> Iterator[Panel]:
    """The pictures that are worst in a measure, run once more; one that is worst in several is shown once."""
    measures_by_picture: dict[str, list[str]] = {}
    for measure, picture_name in report.worst.items():
        measures_by_picture.setdefault(picture_name, []).append(measure)
    own = {difference.name: difference for difference in report.differences}
    for picture in pictures:
        measures = measures_by_picture.pop(picture.name, None)
        if measures is not None:
            reference_HW, candidate_HW = reference.mask(picture.image_HWC), model.mask(picture.image_HWC)
            label, heat_HWC = heat_map(reference_HW, candidate_HW)
            images: dict[str, NDArray[Any]] = {
                "photo": picture.image_HWC,
                **({} if picture.truth_HW is None else {"truth": picture.truth_HW}),
                "reference mask": reference_HW,
                "candidate mask": candidate_HW,
                label: heat_HWC,
            }
            found = own[picture.name]
            caption = (
                f"worst in {', '.join(measures)}: largest difference {found.max_abs:.2g}, mean {found.mean_abs:.2g}, "
                f"{100 * found.flips:.3f} % change side, boundary IoU {found.boundary_iou:.4f}"
            )
            yield Panel(group=name, name=picture.name, caption=caption, images=thumbnails(images))
