"""Network weights in checkpoints of other tools: Lightning, timm, FSDP and more.

A tool puts the state dict into dictionaries, beside optimizers and averaged copies, and a prefix before its names. The
weights are where the network's first layer is, and the prefix is what stands before that layer's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Weights", "named_tensors", "weights_in"]

_DEEPEST = 8  # dictionaries in one another; deeper ones are no checkpoint's
# Parts of names that wrappers add, at the beginning or in the middle: DataParallel, torch.compile, FSDP.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow)(?![a-z])")
# What training and profilers count in a network, besides scalars of any name.
_COUNTERS = ("total_ops", "total_params", "n_averaged", "num_updates")
_BATCHES = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """One set of weights of a file.

    Attributes:
        tensors: By their names in the network, without prefix and counters.
        keys: Of the dictionaries that lead to it, from the outermost; empty for the file's own.
        prefix: What stood before the names.
    """

    tensors: Mapping[str, Tensor]
    keys: tuple[str, ...]
    prefix: str

    @property
    def is_averaged(self) -> bool:
        """Whether its place says that these are averages over training steps."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", ".".join((*self.keys, self.prefix))).lower()
        return _AVERAGED.search(words) is not None

    @property
    def is_plain(self) -> bool:
        """Tell whether weights stand where expected, without a prefix.

        That is the file's top level or its `state_dict`.
        """
        return self.keys in ((), ("state_dict",)) and not self.prefix

    def __str__(self) -> str:
        prefix = f", prefix '{self.prefix}' removed" if self.prefix else ""
        return f"{'.'.join(self.keys) or 'the file itself'}{prefix}"


def weights_in(content: Mapping[Any, Any], first_layers: Sequence[str]) -> list[Weights]:
    """Find every set of weights that has one of the layers.

    Averaged ones first, then those less deep, then by order.

    Args:
        content: What a file holds.
        first_layers: Names of layers that tell the network.
    """
    found = [
        weights
        for keys, tensors in named_tensors(content)
        for weights in _with_prefixes(keys, tensors, [f"{layer}.weight" for layer in first_layers])
    ]
    return sorted(found, key=lambda weights: (not weights.is_averaged, len(weights.keys), weights.prefix.count(".")))


def named_tensors(content: Mapping[Any, Any]) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the named tensors of each dictionary that holds some, with its keys."""
    found = []
    for keys, mapping in _mappings(content, ()):
        tensors = {name: v for name, v in mapping.items() if isinstance(name, str) and isinstance(v, Tensor)}
        if tensors:
            found.append((keys, tensors))
    return found


def _mappings(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    yield keys, content
    if len(keys) < _DEEPEST:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _mappings(value, (*keys, str(key)))


def _with_prefixes(keys: tuple[str, ...], tensors: Mapping[str, Tensor], firsts: Sequence[str]) -> Iterator[Weights]:
    """Of one dictionary a set for each prefix that stands before a first layer."""
    bare = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in tensors}
    prefixes = dict.fromkeys(
        name.removesuffix(first)
        for name in bare.values()
        for first in firsts
        if name == first or name.endswith(f".{first}")
    )
    for prefix in prefixes:
        longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {
            name: bare_name.removeprefix(prefix)
            for name, bare_name in bare.items()
            if bare_name.startswith(prefix) and not (longer and bare_name.startswith(longer))
        }
        shown = _shown_prefix(own)
        yield Weights(
            tensors={
                inner: _plain(inner, tensors[name]) for name, inner in own.items() if not _counts(inner, tensors[name])
            },
            keys=keys,
            prefix=shown,
        )


def _shown_prefix(own: Mapping[str, str]) -> str:
    """What the file's names have before the network's, or the wrappers in the middle of them."""
    for name, inner in own.items():
        if name != inner:
            wrappers = "".join(f"{part}." for part in name.split(".") if part in _WRAPPERS)
            return name.removesuffix(inner) if name.endswith(inner) else wrappers
    return ""


def _counts(name: str, value: Tensor) -> bool:
    """Whether it is a counter or setting and no weight; batch norm's own counter is the network's."""
    leaf = name.rpartition(".")[2]
    return leaf in _COUNTERS or (value.ndim == 0 and leaf != _BATCHES)


def _plain(name: str, value: Tensor) -> Tensor:
    """Float32, and batch norm's counter as PyTorch has it, whatever a conversion made of it."""
    if name.endswith(_BATCHES):
        return value.long().reshape(()) if value.numel() == 1 else value.long().new_zeros(())
    return value.float() if value.is_floating_point() else value
