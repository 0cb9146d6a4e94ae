"""Observe activations on calibration pictures and derive quantization ranges.

    observed = observe(path, inputs, tensors)
    ranges = ranges_by("mse", observed, symmetric=False)

One pass over the pictures serves every method. Smallest and largest values are exact, channel by channel; the
distribution is that of a few thousand seeded positions per channel, because all of it, a billion values at width 64,
would say the same.

Legend: N pictures, C channels, S sampled positions.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from basnet_torch.arrays import Float32
from basnet_torch.errors import ExportError

__all__ = ["AUTO", "Method", "Observed", "Ranges", "observe", "ranges_by"]

Method = Literal["minmax", "percentile", "entropy", "mse"]
AUTO: tuple[Method, ...] = ("mse", "minmax", "percentile")  # what is tried unasked; entropy takes minutes
Ranges: TypeAlias = dict[str, tuple[float, float]]

_POSITIONS = 4096  # of a channel, over all pictures
_PERCENTILE = 99.999
_SHARES = np.linspace(0.15, 1.0, 35)  # of the whole range, what the least squared error is searched over
_MOST_VALUES = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One tensor on all calibration pictures.

    Attributes:
        low_C: Each channel's smallest value.
        high_C: Each channel's largest value.
        sample_SC: Values at the sampled positions.
    """

    low_C: Float32
    high_C: Float32
    sample_SC: Float32

    @property
    def low(self) -> float:
        """The smallest value of all."""
        return float(self.low_C.min())

    @property
    def high(self) -> float:
        """The largest value of all."""
        return float(self.high_C.max())

    @property
    def largest(self) -> float:
        """The largest magnitude of all."""
        return max(-self.low, self.high)

    @property
    def steps(self) -> float:
        """The steps of a byte up to the largest magnitude, half with negative values."""
        return 255.0 if self.low >= 0 else 127.5

    def over(self, scale_C: Float32 | None) -> Observed:
        """What it is with each channel divided by its share."""
        if scale_C is None:
            return self
        return Observed(low_C=self.low_C / scale_C, high_C=self.high_C / scale_C, sample_SC=self.sample_SC / scale_C)


def observe(
    path: Path, inputs: Iterable[Mapping[str, NDArray[Any]]], tensors: Iterable[str], seed: int = 0
) -> dict[str, Observed]:
    """Run an FP32 graph on every input and record extremes and samples of `tensors`.

    Args:
        path: The ONNX file.
        inputs: One picture each, by input name.
        tensors: Names of N,C,H,W tensors.
        seed: Which positions are sampled.

    Raises:
        ExportError: When a value is not finite.
    """
    fed = list(inputs)
    names = list(tensors)
    session, fetched = _probed(path, names, max(1, _POSITIONS // max(1, len(fed))), seed)
    found: dict[str, list[Any]] = {name: [] for name in fetched}
    for feed in fed:
        for name, value in zip(fetched, session.run(fetched, dict(feed)), strict=True):
            found[name].append(value)
    return {name: _observed(name, *(found[probe] for probe in _probes(name))) for name in names}


def _observed(name: str, lows: list[Any], highs: list[Any], samples: list[Any]) -> Observed:
    low_C, high_C = np.min(lows, axis=0), np.max(highs, axis=0)
    if not np.isfinite((low_C, high_C)).all():
        raise ExportError(f"{name} is not finite on a calibration picture; the checkpoint cannot be quantized")
    return Observed(low_C=low_C, high_C=high_C, sample_SC=np.concatenate([sample[0].T for sample in samples]))


def _probes(name: str) -> tuple[str, str, str]:
    return f"{name}/low", f"{name}/high", f"{name}/sample"


def _probed(path: Path, names: list[str], positions: int, seed: int) -> tuple[Any, list[str]]:
    """Open a session that outputs each channel's extremes and samples."""
    import onnx
    from onnx import helper, numpy_helper

    from basnet_runtime.backends.onnxruntime import session_of

    graph = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.graph.value_info, *graph.graph.input)}
    rng, places = np.random.default_rng(seed), {}
    flat = numpy_helper.from_array(np.array([0, 0, -1], np.int64), "probe/flat")
    rest = numpy_helper.from_array(np.array([0, 2, 3], np.int64), "probe/all-but-channels")
    graph.graph.initializer.extend([flat, rest])
    for name in names:
        area = int(np.prod([axis.dim_value for axis in shapes[name]][2:]))
        if area not in places:
            chosen = np.sort(rng.choice(area, min(positions, area), replace=False)).astype(np.int64)
            places[area] = f"probe/places{area}"
            graph.graph.initializer.append(numpy_helper.from_array(chosen, places[area]))
        low, high, sample = _probes(name)
        graph.graph.node.extend(
            [
                helper.make_node("ReduceMin", [name, rest.name], [low], keepdims=0),
                helper.make_node("ReduceMax", [name, rest.name], [high], keepdims=0),
                helper.make_node("Reshape", [name, flat.name], [f"{name}/flat"]),
                helper.make_node("Gather", [f"{name}/flat", places[area]], [sample], axis=2),
            ]
        )
    fetched = [probe for name in names for probe in _probes(name)]
    graph.graph.output.extend(helper.make_tensor_value_info(f, onnx.TensorProto.FLOAT, None) for f in fetched)
    return session_of(graph.SerializeToString()), fetched


def ranges_by(method: Method, observed: Mapping[str, Observed], *, symmetric: bool) -> Ranges:
    """Compute the range of each tensor.

    Args:
        method: `minmax` takes all values in; `percentile` cuts the outermost 0.001 %; `entropy` keeps the distribution
            (Kullback-Leibler divergence); `mse` has the least squared error of the sampled values.
        observed: From `observe`.
        symmetric: Whether zero will be the middle of the range.
    """
    if method == "minmax":
        return {name: (tensor.low, tensor.high) for name, tensor in observed.items()}
    if method == "mse":
        return {name: _least_error(tensor, symmetric=symmetric) for name, tensor in observed.items()}
    return _by_histogram(method, observed, symmetric=symmetric)


def _least_error(tensor: Observed, *, symmetric: bool) -> tuple[float, float]:
    values = tensor.sample_SC.ravel()
    values = values[:: max(1, len(values) // _MOST_VALUES)]
    ends = [(tensor.low * share, tensor.high * share) for share in _SHARES]
    return min(ends, key=lambda pair: _squared_error(values, *pair, symmetric=symmetric))


def _squared_error(values: Float32, low: float, high: float, *, symmetric: bool) -> float:
    """Mean squared quantization error over a range."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        step, first, last = max(-low, high) / 127, -128, 127
    else:
        step = (high - low) / 255
        first = round(low / step) if step > 0 else 0
        last = first + 255
    if step <= 0:
        return 0.0
    rounded = np.clip(np.rint(values / np.float32(step)), first, last) * np.float32(step)
    return float(np.mean((rounded - values) ** 2))


def _by_histogram(method: str, observed: Mapping[str, Observed], *, symmetric: bool) -> Ranges:
    """Percentile or entropy by ONNX Runtime's collector, on the sampled values."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, symmetric, 2048, 128, _PERCENTILE, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        collector.collect({name: tensor.sample_SC for name, tensor in observed.items()})
        found = cast(Mapping[str, Any], collector.compute_collection_result())
    return {name: (float(values[0]), float(values[1])) for name, values in found.items()}
