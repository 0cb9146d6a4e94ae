"""Plain command lines, read by a command's options without typer.

    values = plain_arguments(options_of(RunConfig), ["photo.jpg", "-o", "mask.png"])

typer, and pydantic that it validates with, cost more CPU time than reading and writing a photo. A line of known
options, each at most once and with a value of its type, is read here; every other line (`--help`, a mistake, an
abbreviation) gives None and is left to typer, so that its errors and help stay the only ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from basnet_torch.options import Option

__all__ = ["plain_arguments"]


class _NotPlain(Exception):
    """The line needs typer."""


def plain_arguments(options: Sequence[Option], words: Sequence[str]) -> dict[str, Any] | None:
    """Values of options by name, or None where the line is for typer to read.

    Args:
        options: Of the command, with one argument that takes a list.
        words: The command line without the program's name.

    >>> inputs = Option(name="inputs", kind=list[str], default=None, flags=(), settings={})
    >>> size = Option(name="size", kind=int, default=3, flags=("--size",), settings={"min": 1})
    >>> plain_arguments([inputs, size], ["a", "--size", "4", "b"])
    {'inputs': ['a', 'b'], 'size': 4}
    >>> plain_arguments([inputs, size], ["a", "--size", "0"]) is None
    True
    """
    values = {one.name: one.default for one in options}
    by_flag = {flag: one for one in options for flag in one.flags}
    inputs: list[str] = []
    values[next(one.name for one in options if not one.flags)] = inputs
    given = set()
    rest = list(words)
    try:
        while rest:
            word = rest.pop(0)
            if word == "-" or not word.startswith("-"):
                inputs.append(word)
                continue
            flag, joined, text = word.partition("=")
            one = by_flag.get(flag) or _refuse()
            if one.kind is bool:
                values[one.name] = True if not joined else _refuse()
            elif one.name in given:
                _refuse()
            else:
                given.add(one.name)
                if not joined:  # the next word, unless it looks like an option itself
                    text = _refuse() if not rest or (rest[0].startswith("-") and rest[0] != "-") else rest.pop(0)
                values[one.name] = _value(text, one)
    except (_NotPlain, ValueError):
        return None
    return values if inputs else None


def _value(text: str, one: Option) -> Any:
    if one.kind in (str, Path):
        return one.kind(text) if text else _refuse()
    if get_origin(one.kind) is Literal:
        return text if text in get_args(one.kind) else _refuse()
    if one.kind not in (int, float) or not text.isascii() or "_" in text or text.strip() != text:
        _refuse()
    number = one.kind(text)
    low, high = one.settings.get("min", -math.inf), one.settings.get("max", math.inf)
    return number if math.isfinite(number) and low <= number <= high else _refuse()


def _refuse() -> Any:
    raise _NotPlain
