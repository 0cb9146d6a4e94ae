"""What foreground colours and refined edges are worth, on pictures whose truth is known.

    report = measure_edges(EdgesConfig(dataset=Path("DUTS-TE")))

Colours: each bundled photograph is a foreground, laid by a mask with soft and hair-like edges over each of the others.
So the foreground's own colour is known at every pixel of the edge, and what a cut-out shows there can be held against
it, as it is and as estimated, under the exact mask and under one that went through the 256 pixels of a network. Another
library's estimate stands beside where it is installed.

Edges: the masks of a data set's pictures against their truth, as they are and refined.

Legend: H height, W width; masks uint8 0..255, colours in levels of 0..255.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basnet_benchmarks.environment import Environment, environment
from basnet_benchmarks.parity import Pictures
from basnet_benchmarks.saliency_scores import relaxed_boundary_f
from basnet_runtime.masks import mask_from_map
from basnet_runtime.media.edges import refined_edges
from basnet_runtime.media.foreground import Foreground
from basnet_runtime.open import open_model
from basnet_runtime.parity import boundary_iou
from basnet_runtime.threads import allowed_threads
from basnet_torch.errors import UsageError

__all__ = ["Composition", "EdgesConfig", "EdgesReport", "EdgesRow", "compositions", "measure_edges", "strands"]

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
_Progress = Callable[[str], None]
_Estimate = Callable[[UInt8, UInt8], UInt8]
AS_IT_IS, OURS, OTHER = "as it is", "ours", "pymatting, multi-level"
_SIZE = 480, 640
_TIMED_SIZE = 720, 1280
_NETWORK = 256
_SOFT = 5, 250  # between these a pixel is of the edge
_RUNS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgesConfig:
    """What to measure on.

    Attributes:
        dataset: Data set with masks, on which edges are refined; None measures colours alone.
        model: Whose masks are refined; None takes the built-in model.
        limit: Most pictures of the data set; None takes all.
        threads: Processor threads; None takes what the container allows.
    """

    dataset: Path | None = None
    model: Path | None = None
    limit: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgesRow:
    """One measure; `values` by the way it was made, None where that way cannot run."""

    name: str
    better: str
    pictures: int
    values: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "better": self.better, "pictures": self.pictures, "values": self.values}


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgesReport:
    """A whole run."""

    model: str
    environment: Environment
    rows: tuple[EdgesRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [row.to_dict() for row in self.rows]
        ways = [AS_IT_IS, OURS, OTHER]
        return {
            "command": "edges",
            "model": self.model,
            "ways": ways,
            "environment": self.environment.to_dict(),
            "rows": rows,
        }


def measure_edges(config: EdgesConfig, progress: _Progress = lambda _: None) -> EdgesReport:
    """Measure colours, then edges where a data set is given, then the time of both.

    Raises:
        UsageError: The data set has no masks.
        BackendUnavailable: The library that runs the model is not there.
    """
    before = environment(config.threads or allowed_threads())
    progress("colours: compositions of the bundled photographs")
    rows = _colour_rows()
    name = "none"
    if config.dataset is not None:
        refined, name = _edge_rows(config, config.dataset, progress)
        rows += refined
    return EdgesReport(model=name, environment=before, rows=(*rows, *_time_rows()))


def strands(height: int, width: int, seed: int) -> UInt8:
    """A mask as of a head with loose hair: a soft round shape with thin strands standing off it."""
    import cv2

    rng = np.random.default_rng(seed)
    fine = 4  # drawn that many times larger, so that a strand can be thinner than a pixel
    canvas = np.zeros((height * fine, width * fine), np.uint8)
    middle = np.array([width, height]) * fine / 2
    radius = 0.3 * min(height, width) * fine
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    wave = sum(rng.normal(0, 0.05 / k) * np.sin(k * angles + rng.uniform(0, 6)) for k in range(1, 6))
    outline = middle + radius * (1 + np.asarray(wave)[:, None]) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(canvas, [outline.astype(np.int32)], (255.0,))
    for angle in rng.uniform(0, 2 * np.pi, 240):
        bend, reach = rng.normal(0, 0.25), rng.uniform(1.05, 1.4)
        along = np.linspace(0.8, reach, 12)
        turned = angle + bend * (along - 0.8)
        points = middle + radius * along[:, None] * np.stack([np.cos(turned), np.sin(turned)], axis=1)
        thick = int(rng.integers(2, 7))
        line = [points.astype(np.int32)]
        cv2.polylines(canvas, line, isClosed=False, color=(255.0,), thickness=thick, lineType=cv2.LINE_AA)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), rng.uniform(0.6, 2.0)), np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """A picture made of a known foreground, and its exact mask; all of one size."""

    image_HWC: UInt8
    front_HWC: UInt8
    mask_HW: UInt8


def compositions(size: tuple[int, int] = _SIZE) -> Iterator[Composition]:
    """Every bundled photograph over every other."""
    import cv2

    height, width = size
    photos = [
        np.asarray(cv2.resize(picture.image_HWC, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        for picture in Pictures(None)
    ]
    pairs = [(i, j) for i in range(len(photos)) for j in range(len(photos)) if i != j]
    for seed, (i, j) in enumerate(pairs):
        mask_HW = strands(height, width, seed)
        share = mask_HW[..., None].astype(np.float32) / np.float32(255)
        image = np.rint(share * photos[i] + (1 - share) * photos[j]).astype(np.uint8)
        yield Composition(image_HWC=image, front_HWC=photos[i], mask_HW=mask_HW)


def _ways() -> dict[str, _Estimate | None]:
    return {AS_IT_IS: lambda image, _: image, OURS: _fused, OTHER: _multi_level if find_spec("pymatting") else None}


def _fused(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    cleaned = image_HWC.copy()
    Foreground(image_HWC, mask_HW).clean(cleaned, mask_HW)
    return cleaned


def _multi_level(image_HWC: UInt8, mask_HW: UInt8) -> UInt8:
    from pymatting import estimate_foreground_ml

    front = estimate_foreground_ml(image_HWC / 255.0, mask_HW / 255.0)
    return np.asarray(np.rint(front * 255).clip(0, 255), np.uint8)


def _colour_rows() -> list[EdgesRow]:
    rims: dict[str, dict[str, list[float]]] = {
        kind: {way: [] for way in _ways()} for kind in ("exact mask", f"mask through {_NETWORK} pixels")
    }
    made_pictures = list(compositions())
    for made in made_pictures:
        for (_, found), mask_HW in zip(rims.items(), (made.mask_HW, _through_network(made.mask_HW)), strict=True):
            for way, estimate in _ways().items():
                if estimate is not None:
                    found[way].append(_rim(estimate(made.image_HWC, mask_HW), made, mask_HW))
    return [
        EdgesRow(
            name=f"wrong colour at edges, levels, {kind}",
            better="less",
            pictures=len(made_pictures),
            values={way: math.fsum(errors) / len(errors) if errors else None for way, errors in found.items()},
        )
        for kind, found in rims.items()
    ]


def _through_network(mask_HW: UInt8) -> UInt8:
    """What is left of a mask at the size at which networks give theirs."""
    import cv2

    small = cv2.resize(mask_HW, (_NETWORK, _NETWORK), interpolation=cv2.INTER_AREA)
    return mask_from_map(small.astype(np.float32) / np.float32(255), *mask_HW.shape)


def _rim(shown_HWC: UInt8, made: Composition, mask_HW: UInt8) -> float:
    """Mean wrong colour of the mask's soft pixels, each weighted by how much of it shows."""
    soft = (mask_HW > _SOFT[0]) & (mask_HW < _SOFT[1])
    share = mask_HW[soft].astype(np.float64) / 255
    wrong = np.abs(shown_HWC[soft].astype(np.float64) - made.front_HWC[soft]).mean(axis=1)
    return float((share * wrong).sum() / share.sum())


def _edge_rows(config: EdgesConfig, dataset: Path, progress: _Progress) -> tuple[list[EdgesRow], str]:
    found: dict[str, list[tuple[float, float, float]]] = {AS_IT_IS: [], OURS: []}
    with open_model(config.model, threads=config.threads) as model:
        for index, picture in enumerate(islice(Pictures(dataset), config.limit)):
            if index % 50 == 0:
                progress(f"edges: {index} pictures of {dataset.name}")
            if picture.truth_HW is None:
                raise UsageError(f"{dataset}: holds pictures and no masks; give a data set")
            mask_HW = np.rint(model.mask(picture.image_HWC) * 255).astype(np.uint8)
            refined_HW = refined_edges(picture.image_HWC, mask_HW)
            for way, each in ((AS_IT_IS, mask_HW), (OURS, refined_HW)):
                found[way].append(_scores(each, picture.truth_HW))
        name = model.name
    measures = (("boundary IoU", "more"), ("relaxF", "more"), ("MAE", "less"))
    means = {way: np.mean(scores, axis=0) for way, scores in found.items()}
    rows = [
        EdgesRow(
            name=f"{measure} on {dataset.resolve().name}, edges refined",
            better=better,
            pictures=len(found[OURS]),
            values={AS_IT_IS: float(means[AS_IT_IS][i]), OURS: float(means[OURS][i]), OTHER: None},
        )
        for i, (measure, better) in enumerate(measures)
    ]
    return rows, name


def _scores(mask_HW: UInt8, truth_HW: Float32) -> tuple[float, float, float]:
    found, truth = mask_HW > 127, truth_HW > 0.5
    mae = float(np.abs(mask_HW / np.float32(255) - truth_HW).mean(dtype=np.float64))
    return boundary_iou(found, truth), relaxed_boundary_f(found, truth), mae


def _time_rows() -> list[EdgesRow]:
    """Milliseconds at 1280 x 720, one OpenCV thread, as a run on the processor leaves it."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        made = next(iter(compositions(_TIMED_SIZE)))
        colour = {
            way: None if estimate is None else _milliseconds(estimate, made)
            for way, estimate in _ways().items()
            if way != AS_IT_IS
        }
        refined = {OURS: _milliseconds(refined_edges, made), OTHER: None}
    finally:
        cv2.setNumThreads(before)
    size = f"{_TIMED_SIZE[1]} x {_TIMED_SIZE[0]}"
    timed = (("foreground colours", colour), ("refining edges", refined))
    return [
        EdgesRow(name=f"{what}, ms at {size}", better="less", pictures=1, values={AS_IT_IS: 0.0, **values})
        for what, values in timed
    ]


def _milliseconds(estimate: _Estimate, made: Composition) -> float:
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        estimate(made.image_HWC, made.mask_HW)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
