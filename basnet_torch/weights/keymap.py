"""Our parameter names and the authors', both ways.

The authors' `basnet.pth` names layers `inconv`, `encoder1..4`, `resb5_1`, `conv6d_m`, `outconvb`, `refunet.conv_d4`;
ours follow the paper's figure. The table is exact: every name of one side has one name on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TypeVar

__all__ = ["authors_from_ours", "is_authors_layout", "ours_from_authors", "prefix_pairs"]

T = TypeVar("T")

_BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3, 5: 3, 6: 3}


def is_authors_layout(names: Mapping[str, object]) -> bool:
    """Whether a state dict looks like the authors' checkpoint.

    >>> is_authors_layout({"inconv.weight": 0, "refunet.conv0.weight": 0})
    True
    """
    return "inconv.weight" in names and "refunet.conv0.weight" in names


def ours_from_authors(state: Mapping[str, T]) -> dict[str, T]:
    """Rename the authors' entries to ours; unknown names fail in a strict load."""
    return _renamed(state, {theirs: ours for ours, theirs in prefix_pairs()})


def authors_from_ours(state: Mapping[str, T]) -> dict[str, T]:
    """Rename our entries to the authors'.

    >>> authors_from_ours({"predict.encoder.stem.conv.weight": 1})
    {'inconv.weight': 1}
    """
    return _renamed(state, dict(prefix_pairs()))


def _renamed(state: Mapping[str, T], table: Mapping[str, str]) -> dict[str, T]:
    renamed = {}
    for name, value in state.items():
        prefix, _, leaf = name.rpartition(".")
        renamed[f"{table.get(prefix, prefix)}.{leaf}"] = value
    return renamed


@cache
def prefix_pairs() -> tuple[tuple[str, str], ...]:
    """(our layer, the authors' layer) for every layer with parameters or statistics."""
    return (*_encoder(), *_conv_norm_layers(), *_side_outputs(), *_refinement())


def _encoder() -> Iterator[tuple[str, str]]:
    yield "predict.encoder.stem.conv", "inconv"
    yield "predict.encoder.stem.norm", "inbn"
    for stage, blocks in _BLOCKS.items():
        for block in range(blocks):
            ours = f"predict.encoder.stage{stage}.{block}"
            theirs = f"encoder{stage}.{block}" if stage < 5 else f"resb{stage}_{block + 1}"
            for i in (1, 2):
                yield f"{ours}.conv{i}", f"{theirs}.conv{i}"
                yield f"{ours}.norm{i}", f"{theirs}.bn{i}"
            if stage in (2, 3, 4) and block == 0:
                for i in (0, 1):
                    yield f"{ours}.shortcut.{i}", f"{theirs}.downsample.{i}"


def _conv_norm_layers() -> Iterator[tuple[str, str]]:
    """Bridge and decoder: three conv-BN-ReLU each, which the authors call 1, m and 2."""
    stages = {"predict.bridge": "bg", **{f"predict.decoder.stage{i}": f"{i}d" for i in range(1, 7)}}
    for ours, theirs in stages.items():
        for i, suffix in enumerate("1m2"):
            yield f"{ours}.{i}.conv", f"conv{theirs}_{suffix}"
            yield f"{ours}.{i}.norm", f"bn{theirs}_{suffix}"


def _side_outputs() -> Iterator[tuple[str, str]]:
    yield "predict.side_outputs.convs.bridge", "outconvb"
    for i in range(1, 7):
        yield f"predict.side_outputs.convs.stage{i}", f"outconv{i}"


def _refinement() -> Iterator[tuple[str, str]]:
    yield "refine.input", "refunet.conv0"
    yield "refine.output", "refunet.conv_d0"
    yield "refine.bottom.conv", "refunet.conv5"
    yield "refine.bottom.norm", "refunet.bn5"
    for i in range(1, 5):
        yield f"refine.down{i}.conv", f"refunet.conv{i}"
        yield f"refine.down{i}.norm", f"refunet.bn{i}"
        yield f"refine.up{i}.conv", f"refunet.conv_d{i}"
        yield f"refine.up{i}.norm", f"refunet.bn_d{i}"
