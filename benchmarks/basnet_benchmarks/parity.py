"""Whether backends, precisions and exported files give the masks of a checkpoint in PyTorch FP32, on real pictures.

report = measure_parity(ParityConfig(reference=Path("basnet.pth"), pictures=Path("dev")))
raise SystemExit(report.exit_code)

The contract is `basnet_runtime/parity.toml`. What could not run was not proven, and that is never a pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.candidates import (
    REFERENCE,
    Candidate,
    ModelSource,
    candidates_of,
    parse_choices,
    parse_device,
)
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.report import Panel, heat_map, thumbnails
from basnet_runtime.model import SaliencyModel
from basnet_runtime.model_files import model_kind
from basnet_runtime.parity import Difference, ParityReport, Picture, compare, tolerance_for
from basnet_runtime.threads import allowed_threads
from basnet_torch.config import MaskValues, OnBadPair
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, BadPairError, UsageError

__all__ = [
    "PARITY_FAILED",
    "UNPROVEN",
    "ParityConfig",
    "ParityResult",
    "ParityRow",
    "Pictures",
    "RememberingModel",
    "Verdict",
    "measure_parity",
]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Verdict = Literal["passed", "failed", "not proven"]
PARITY_FAILED = 4
UNPROVEN = 3
_REMEMBERED_BYTES = 1_000_000_000
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityConfig:
    """What to compare on what.

    Attributes:
        reference: A checkpoint; it runs in PyTorch FP32.
        candidates: Checkpoints and `.onnx` files; none compares the reference with its own other backends.
        pictures: A folder of pictures, or a data set with masks; None takes the bundled photographs.
        backends: `BACKEND` or `BACKEND:PRECISION`; none takes all.
        threads: Processor threads; None takes what the container allows.
        device: Of the candidates; the reference runs on the same one where PyTorch can, else on the CPU, which is said.
        panels: Whether thumbnails of each candidate's worst pictures are kept for a page.
        mask_values: What the values of a data set's masks mean.
    """

    reference: Path
    candidates: tuple[Path, ...] = ()
    pictures: Path | None = None
    backends: tuple[str, ...] = ()
    threads: int | None = None
    device: Device = CPU
    panels: bool = False
    mask_values: MaskValues = "auto"

    def __post_init__(self) -> None:
        if model_kind(self.reference) != "checkpoint":
            raise UsageError(f"reference {self.reference}: is none; give the checkpoint that was exported")
        if len({path.name for path in self.candidates}) < len(self.candidates):
            raise UsageError(f"candidates {', '.join(map(str, self.candidates))}: each needs a name of its own")
        parse_choices(self.backends)
        parse_device(self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityRow:
    """One candidate.

    Attributes:
        model: Name of the file.
        backend: Library.
        precision: Arithmetic.
        runs_on: What the backend says of itself; empty when it did not run.
        report: What was measured; None when it did not run.
        reason: Why it did not run.
        file: Where the file is; empty for one that was exported for this run alone.
        fingerprint: Which network, see `fingerprint_of`.
        panels: The worst pictures, when they were asked for.
    """

    model: str
    backend: str
    precision: str
    runs_on: str = ""
    report: ParityReport | None = None
    reason: str = ""
    file: str = ""
    fingerprint: str = ""
    panels: tuple[Panel, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model}, {self.backend} {self.precision}"

    @property
    def verdict(self) -> Verdict:
        """`not proven` where it did not run, or where flat masks of the reference are all that it was measured on."""
        if self.report is None or (self.report.flat and len(self.report.failures) == 1):
            return "not proven"
        return "passed" if self.report else "failed"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Each reason for the verdict, when it is no pass."""
        return (self.reason,) if self.report is None else self.report.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "file": self.file,
            "fingerprint": self.fingerprint,
            "backend": self.backend,
            "precision": self.precision,
            "runs_on": self.runs_on,
            "verdict": self.verdict,
            "remarks": list(self.remarks),
            "report": None if self.report is None else self.report.to_dict(),
            "pictures": [] if self.report is None else [row.to_dict() for row in self.report.differences],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityResult:
    """A whole run.

    Attributes:
        reference: Name of the checkpoint.
        reference_runs_on: What ran it.
        pictures: Where the pictures came from.
        environment: Where all of it ran.
        reference_file: Where the checkpoint is.
        rows: One per candidate.
        asked: Whether backends were asked by name, so that one that is not there is an error.
    """

    reference: str
    reference_runs_on: str
    pictures: str
    environment: Environment
    rows: tuple[ParityRow, ...]
    asked: bool
    reference_file: str = ""

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The worst pictures of every candidate."""
        return tuple(panel for row in self.rows for panel in row.panels)

    @property
    def exit_code(self) -> int:
        """4 when a candidate that ran did not pass; 3 when one that was asked, or every one, did not run; else 0."""
        if any(row.report is not None and not row.report for row in self.rows):
            return PARITY_FAILED
        unproven = [row for row in self.rows if row.report is None]
        return UNPROVEN if unproven and (self.asked or len(unproven) == len(self.rows)) else 0

    @property
    def conclusion(self) -> str:
        """Why the exit code is not 0, in one line; empty when it is."""
        if not self.exit_code:
            return ""
        ran = self.exit_code == PARITY_FAILED
        rows = [row for row in self.rows if (row.report is not None and not row.report if ran else row.report is None)]
        return "; ".join(f"{row.verdict}: {row.name}: {', '.join(row.remarks)}" for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "command": "parity",
            "reference": self.reference,
            "reference_file": self.reference_file,
            "reference_runs_on": self.reference_runs_on,
            "pictures": self.pictures,
            "environment": self.environment.to_dict(),
            "candidates": [row.to_dict() for row in self.rows],
            "exit_code": self.exit_code,
        }


class Pictures:
    """Pictures of a folder or a data set, with truth where there are masks; read anew in every pass.

    A folder with pictures directly in it is a folder of pictures, unless masks lie beside them. Anything else, zip
    files included, must be laid out as one of the data sets `basnet_torch.datasets` knows.

    Attributes:
        name: Where they come from.
        has_truth: Whether there are masks.
        report: What the last pass found, as training says it.
        failures: Names of the pairs that the last pass left out, and why.
    """

    def __init__(self, source: Path | None, *, mask_values: MaskValues = "auto", on_bad: OnBadPair = "refuse") -> None:
        """Look for the pictures.

        Args:
            source: Folder, zip file or data set; None takes the bundled photographs.
            mask_values: What the masks' values mean.
            on_bad: Whether pairs that cannot be read end a pass or are left out of it, see `failures`.

        Raises:
            UsageError: There is no such folder, or nothing in it.
            DataError: The data set's layout is not known, or pictures and masks do not pair.
        """
        from basnet_torch.datasets import DataReport

        self.name = str(source) if source else "bundled photographs"
        self.report = DataReport()
        self.failures: list[tuple[str, str]] = []
        self._values, self._on_bad = mask_values, on_bad
        self.has_truth = source is not None and _is_data_set(source)
        self._read = self._pairs(source) if source is not None and self.has_truth else self._plain(source)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self._read())

    @staticmethod
    def _plain(folder: Path | None) -> Callable[[], Iterable[Picture]]:
        from basnet_export.samples import load_pictures

        pictures = load_pictures(folder)
        return lambda: pictures

    def _pairs(self, source: Path) -> Callable[[], Iterable[Picture]]:
        from basnet_torch.datasets import DataReport, find_pairs, read_pair
        from basnet_torch.masks import refuse_without_labels

        unpaired = DataReport()
        pairs = find_pairs([source], on_bad=self._on_bad, report=unpaired)
        lacking = {"picture": unpaired.without_picture, "mask": unpaired.without_mask}

        def read() -> Iterator[Picture]:
            self.report = DataReport(without_mask=lacking["mask"], without_picture=lacking["picture"])
            self.failures = [(name, f"{name}: has no {what}") for what, names in lacking.items() for name in names]
            has_labels = False
            for pair in pairs:
                try:
                    image, truth = read_pair(pair, self._values)
                except BadPairError as error:
                    if self._on_bad == "refuse":
                        raise
                    self.report.count(pair, error)
                    self.failures.append((pair.name, str(error)))
                    continue
                self.report.count(pair, None, truth.odd)
                has_labels |= truth.has_labels
                yield Picture(
                    name=pair.name,
                    image_HWC=image,
                    truth_HW=truth.mask_HW.astype(np.float32) / np.float32(255),
                    ignored_HW=truth.ignored_HW,
                )
            if self.report.pairs:
                refuse_without_labels(self.name, self._values, has_labels=has_labels)

        return read


def _is_data_set(source: Path) -> bool:
    from basnet_runtime.media.pictures import is_picture
    from basnet_torch.layouts import masks_beside

    if not source.exists():
        raise UsageError(f"{source}: no such folder of pictures or data set")
    if not source.is_dir():
        return True
    names = [path.name for path in source.iterdir() if path.is_file() and is_picture(path)]
    return not names or bool(masks_beside(source, names))


class RememberingModel:
    """The reference, which sees the same pictures once per candidate, and runs its network once for each."""

    def __init__(self, model: SaliencyModel, limit_bytes: int = _REMEMBERED_BYTES) -> None:
        """`limit_bytes`: raw maps beyond it are not kept but computed again."""
        self._model = model
        self._room = limit_bytes
        self._maps: dict[bytes, NDArray[Any]] = {}

    @property
    def takes_frames(self) -> bool:
        """As the model itself."""
        return self._model.takes_frames

    def mask(self, image_HWC: UInt8, /) -> Float32:
        """See `MaskModel`."""
        shape = repr(image_HWC.shape).encode()
        key = hashlib.blake2b(np.ascontiguousarray(image_HWC).data, digest_size=16, key=shape).digest()
        raw = self._maps.get(key)
        if raw is None:
            raw = self._model.infer([self._model.prepare(image_HWC)])[0]
            if raw.nbytes <= self._room:
                self._maps[key] = raw
                self._room -= raw.nbytes
        return self._model.finish(raw, *image_HWC.shape[:2])


def measure_parity(config: ParityConfig, progress: _Progress = lambda _: None) -> ParityResult:
    """Compare every candidate with the reference on every picture.

    Args:
        config: What to compare.
        progress: Called with what is being done.

    Raises:
        BackendUnavailable: PyTorch, which runs the reference, is not there.
        BasnetError: A model or picture cannot be read, or a backend runs none of the candidates.
    """
    threads = config.threads or allowed_threads()
    pictures = Pictures(config.pictures, mask_values=config.mask_values)
    with TemporaryDirectory(prefix="basnet-bench-") as folder, ExitStack() as stack:
        source = ModelSource(str(config.reference), _sub(Path(folder), "reference"), progress)
        reference = stack.enter_context(
            Candidate(source=source, variant=REFERENCE, device=_reference_device(config), threads=threads).open()
        )
        remembering = RememberingModel(reference)
        rows = tuple(
            _row(candidate, remembering, pictures, config.panels, progress)
            for candidate in _candidates(config, source, Path(folder), threads, progress)
        )
        return ParityResult(
            reference=source.name,
            reference_runs_on=reference.backend.description,
            pictures=pictures.name,
            environment=environment(threads),
            rows=rows,
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
        else ModelSource(str(path), _sub(folder, f"candidate-{index}"), progress)
        for index, path in enumerate(config.candidates)
    ] or [reference]
    found = candidates_of(sources, parse_choices(config.backends), config.device, threads)
    found = [c for c in found if not (c.source is reference and c.variant == REFERENCE)]
    if not found:
        raise UsageError(f"backend {', '.join(config.backends)}: is the reference itself; give another to compare")
    return found


def _sub(folder: Path, name: str) -> Path:
    """A folder of one source alone, whatever the others' files are called."""
    own = folder / name
    own.mkdir()
    return own


def _row(
    candidate: Candidate,
    reference: RememberingModel,
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
        report = compare(reference, model, pictures, tolerance_for(candidate.contract))
        shown = tuple(_panels(row.name, report, reference, model, pictures)) if panels else ()
        return replace(row, runs_on=model.backend.description, report=report, panels=shown)


def _panels(
    name: str, report: ParityReport, reference: RememberingModel, model: SaliencyModel, pictures: Pictures
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
            caption = f"worst in {', '.join(measures)}: {_said(own[picture.name])}"
            yield Panel(group=name, name=picture.name, caption=caption, images=thumbnails(images))


def _said(own: Difference) -> str:
    apart = f"largest difference {own.max_abs:.2g}, mean {own.mean_abs:.2g}"
    return f"{apart}, {100 * own.flips:.3f} % change side, boundary IoU {own.boundary_iou:.4f}"
