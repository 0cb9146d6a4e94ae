"""Choose the threshold below which nothing salient is found; count its errors.

    report = measure_threshold(ThresholdConfig(model=Path("basnet.safetensors"), choose=Path("DUTS-TE")))

Every picture of a data set shows an object. What shows none is cut out of the same pictures: the largest square of
background that keeps clear of the mask. That is real material, but no perfect truth: a piece of background may well
show something that stands out, so the share that is called salient has a floor above zero.

The threshold is the score that all but a given share of the objects reach, on every second picture of one data set; the
other pictures and data sets report. Choose on pictures that the network was not trained on: on those that it was, it
is surer of its objects, and the threshold becomes too high for others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from basnet_benchmarks.candidates import BACKEND, MASKS, MODEL, PRECISION, THREADS
from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_runtime.kinds import BackendName, Precision
from basnet_runtime.machine.threads import allowed_threads
from basnet_runtime.model import SaliencyModel
from basnet_runtime.model_files import model_kind
from basnet_runtime.open import open_model
from basnet_runtime.parity import Picture
from basnet_runtime.salience import salience_score
from basnet_torch.arrays import Bool
from basnet_torch.data.options import MaskValues
from basnet_torch.errors import UsageError
from basnet_torch.options import argument, option

__all__ = ["ThresholdConfig", "ThresholdReport", "ThresholdRow", "background_square", "measure_threshold"]

_SHARES = (0.75, 0.625, 0.5, 0.4375, 0.375)  # of the short side, the largest that fits is taken
_CLEAR = 0.015  # of the short side, kept between the square and the object
_Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdConfig:
    """Threshold configuration; model None takes the built-in one."""

    model: Path | None = field(default=None, metadata={**MODEL, "required": True})
    choose: Path = field(metadata=argument("DATASET", "Its every second picture chooses the threshold."))
    report: tuple[Path, ...] = field(default=(), metadata=argument("[DATASET]...", "Further ones report."))
    lost: float = field(default=0.02, metadata=option("Largest share of objects that may be missed."))
    keep: bool = field(default=False, metadata=option("Count errors at the model's own threshold.", "--keep"))
    nothing: Path | None = field(default=None, metadata=option("Folder of pictures without an object; they report."))
    store: Path | None = field(default=None, metadata=option("Write the checkpoint MODEL with the threshold here."))
    overwrite: bool = False
    limit: int | None = field(default=None, metadata=option("Most pictures of each data set.", min=2))
    backend: BackendName | None = field(default=None, metadata=BACKEND)
    precision: Precision | None = field(default=None, metadata=PRECISION)
    mask_values: MaskValues = field(default="auto", metadata=MASKS)
    threads: int | None = field(default=None, metadata=THREADS)

    def __post_init__(self) -> None:
        if not 0 <= self.lost < 1:
            raise UsageError(f"lost is {self.lost}; it must be a share, 0 to 1")
        if self.store is None:
            return
        if self.keep:
            raise UsageError("store and keep: a threshold that is not chosen need not be stored")
        if self.model is None or model_kind(self.model) != "checkpoint":
            raise UsageError("store: a threshold belongs to weights; give the checkpoint as the model, then export it")
        if self.store.suffix not in (".pth", ".safetensors"):
            raise UsageError(f"store {self.store}: write .pth or .safetensors")
        if self.store.exists() and not self.overwrite:
            raise UsageError(f"{self.store} exists already; --overwrite replaces it")


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdRow:
    """One set of pictures."""

    name: str  # which
    objects: int  # pictures with an object
    lost: int  # how many of them were called nothing
    empty: int  # pieces of background, or pictures without an object
    found: int  # how many of them were called salient
    # chance that an object scores higher than a piece of background; None where one of the two is missing
    auc: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdReport:
    """A whole run; `before` is the threshold the model came with."""

    JSON: ClassVar = (
        *("command", "model", "runs_on", "threshold", "before", "lost_allowed", "chosen", "stored"),
        *("environment", "rows"),
    )
    command: ClassVar = "threshold"
    model: str
    runs_on: str
    threshold: float
    before: float
    lost_allowed: float
    chosen: bool
    stored: str | None
    environment: Environment
    rows: tuple[ThresholdRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scores:
    """Of one set: scores of pictures with an object, and of those without."""

    name: str
    objects: tuple[float, ...] = ()
    empty: tuple[float, ...] = ()

    def row(self, threshold: float) -> ThresholdRow:
        objects, empty = np.array(self.objects), np.array(self.empty)
        auc = None
        if len(objects) and len(empty):  # share of pairs in which the object scores higher, ties counted half
            higher = (objects[:, None] > empty).mean(dtype=np.float64)
            auc = float(higher + 0.5 * (objects[:, None] == empty).mean(dtype=np.float64))
        return ThresholdRow(
            name=self.name,
            objects=len(objects),
            lost=int(np.count_nonzero(objects < threshold)),
            empty=len(empty),
            found=int(np.count_nonzero(empty >= threshold)),
            auc=auc,
        )


def measure_threshold(config: ThresholdConfig, progress: _Progress = lambda _: None) -> ThresholdReport:
    """Score pictures and backgrounds, choose the threshold, count errors, store it.

    Raises:
        BackendUnavailable: The library or device is not there.
        UsageError: A data set has no masks, or no object to choose by.
        DataError: A data set's layout is not known, or a picture cannot be read.
    """
    threads = config.threads or allowed_threads()
    before = environment(threads)
    with open_model(config.model, backend=config.backend, precision=config.precision, threads=threads) as model:
        pairs = list(_scored(model, config.choose, config, progress))
        name = config.choose.resolve().name
        chooses, others = (
            _collected(f"{name}, {which}", own)
            for which, own in (("every second: chose", pairs[::2]), ("the others", pairs[1::2]))
        )
        if not chooses.objects and not config.keep:
            raise UsageError(
                f"{config.choose}: none of the pictures that choose, every second, has an object; give more"
            )
        rest = [_collected(p.resolve().name, _scored(model, p, config, progress)) for p in config.report]
        if config.nothing:
            name = f"{config.nothing.resolve().name}, pictures without an object"
            rest.append(_Scores(name=name, empty=tuple(_score(model, p) for p in Pictures(config.nothing))))
        own = model.postprocess.empty_below
        threshold = own if config.keep else chosen_threshold(chooses.objects, config.lost)
        name, runs_on = model.name, model.backend.description
    if config.store is not None and config.model is not None:
        _store(config.model, config.store, threshold, overwrite=config.overwrite)
    return ThresholdReport(
        model=name,
        runs_on=runs_on,
        threshold=threshold,
        before=own,
        lost_allowed=config.lost,
        chosen=not config.keep,
        stored=None if config.store is None else config.store.name,
        environment=before,
        rows=tuple(scores.row(threshold) for scores in (chooses, others, *rest)),
    )


def chosen_threshold(scores: Sequence[float], lost: float) -> float:
    """Return the highest threshold with at most that share of scores below it.

    In steps of a thousandth.

    >>> chosen_threshold([0.2, 0.5, 0.7, 0.9], lost=0.25)
    0.5
    """
    ordered = sorted(scores)
    return math.floor(1000 * ordered[int(lost * len(ordered))] + 1e-6) / 1000


def background_square(truth_HW: Bool, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Return rows and columns of a large square clear of the object; None without.

    >>> truth = np.zeros((100, 200), bool)
    >>> truth[:, :90] = True
    >>> rows, columns = background_square(truth, np.random.default_rng(0))
    >>> rows.stop - rows.start, bool(truth[rows, columns].any())
    (75, False)
    """
    import cv2

    short = min(truth_HW.shape)
    reach = 2 * max(1, round(_CLEAR * short)) + 1
    near = cv2.dilate(truth_HW.astype(np.uint8), np.ones((reach, reach), np.uint8))
    sums = cv2.integral(near)
    for share in _SHARES:
        side = max(1, int(share * short))
        inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        rows, columns = np.nonzero(inside == 0)
        if len(rows):
            pick = int(rng.integers(len(rows)))
            top, left = int(rows[pick]), int(columns[pick])
            return slice(top, top + side), slice(left, left + side)
    return None


def _scored(
    model: SaliencyModel, source: Path, config: ThresholdConfig, progress: _Progress
) -> Iterator[tuple[float | None, float | None]]:
    """Of each picture the score of the whole and that of its piece of background, None where there is none."""
    rng = np.random.default_rng(0)
    for index, picture in enumerate(islice(Pictures(source, mask_values=config.mask_values), config.limit)):
        if index % 50 == 0:
            progress(f"{source.name}: {index} pictures scored")
        if picture.truth_HW is None:
            raise UsageError(f"{source}: holds pictures and no masks; give a data set, or take --nothing")
        truth = picture.truth_HW > 0.5
        square = background_square(truth if picture.ignored_HW is None else truth | picture.ignored_HW, rng)
        whole = _score(model, picture) if truth.any() else None
        piece = None if square is None else replace(picture, image_HWC=np.ascontiguousarray(picture.image_HWC[square]))
        yield whole, None if piece is None else _score(model, piece)


def _score(model: SaliencyModel, picture: Picture) -> float:
    model.check_size(picture.name, *picture.image_HWC.shape[:2])
    return salience_score(model.infer([model.prepare(picture.image_HWC)])[0])


def _collected(name: str, pairs: Iterable[tuple[float | None, float | None]]) -> _Scores:
    pairs = list(pairs)
    objects = tuple(whole for whole, _ in pairs if whole is not None)
    return _Scores(name=name, objects=objects, empty=tuple(piece for _, piece in pairs if piece is not None))


def _store(source: Path, target: Path, threshold: float, *, overwrite: bool) -> None:
    """The checkpoint with the threshold in its `Postprocess`, its weights kept as they were stored."""
    import torch

    from basnet_torch.checkpoint import load_checkpoint, read_file, save_checkpoint
    from basnet_torch.files import atomic_write

    checkpoint = load_checkpoint(source)
    content = read_file(source)
    stored = content.get("state_dict", content).values()
    half = any(isinstance(value, torch.Tensor) and value.dtype == torch.float16 for value in stored)
    postprocess = replace(checkpoint.postprocess, empty_below=threshold)
    with atomic_write(target, overwrite=overwrite) as beside:
        save_checkpoint(
            beside, replace(checkpoint, postprocess=postprocess), dtype=torch.float16 if half else torch.float32
        )
