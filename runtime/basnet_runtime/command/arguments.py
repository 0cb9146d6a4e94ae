"""Plain command lines, read from a typer command's own signature but without pydantic.

    values = plain_arguments(run, ["photo.jpg", "-o", "mask.png"])

typer validates with pydantic, whose import and schemas cost a sixth of the CPU time of masking one photo. A line of
known options, each at most once and with a value of its type, is read here; every other line (`--help`, a mistake, an
abbreviation) gives None and is left to typer, so that its errors and help stay the only ones.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

__all__ = ["plain_arguments"]


class _NotPlain(Exception):
    """The line needs typer."""


def plain_arguments(command: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """Values for `command` by parameter name, or None where the line is for typer to read.

    Args:
        command: A function whose parameters are `Annotated` with typer's options and one list argument.
        words: The command line without the program's name.

    >>> import typer
    >>> def command(inputs: Annotated[list[str], typer.Argument()], size: Annotated[int, typer.Option(min=1)] = 3):
    ...     pass
    >>> plain_arguments(command, ["a", "--size", "4", "b"])
    {'inputs': ['a', 'b'], 'size': 4}
    >>> plain_arguments(command, ["a", "--size", "0"]) is None
    True
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, globalns=command.__globals__, include_extras=True)
    values = {name: parameter.default for name, parameter in signature.parameters.items()}
    options: dict[str, tuple[str, Any, OptionInfo]] = {}
    inputs, given = "", set()
    for name in values:
        kind, info = _parts(hints[name])
        if isinstance(info, ArgumentInfo):
            inputs, values[name] = name, []
        elif isinstance(info, OptionInfo):
            # In an annotation typer takes the first flag for the default, and puts it right later.
            flags = (*((info.default,) if isinstance(info.default, str) else ()), *(info.param_decls or ()))
            for flag in flags or (f"--{name.replace('_', '-')}",):
                options[flag] = name, kind, info
    rest = list(words)
    try:
        while rest:
            word = rest.pop(0)
            if word == "-" or not word.startswith("-"):
                values[inputs].append(word)
                continue
            flag, joined, text = word.partition("=")
            name, kind, info = options.get(flag) or _refuse()
            if kind is bool:
                values[name] = True if not joined else _refuse()
            elif name in given:
                _refuse()
            else:
                given.add(name)
                values[name] = _value(text if joined else _next(rest), kind, info)
    except (_NotPlain, ValueError):
        return None
    return values if values[inputs] else None


def _parts(hint: Any) -> tuple[Any, ParameterInfo]:
    """A parameter's type without None, and what typer was told of it."""
    kind, info = get_args(hint) if get_origin(hint) is Annotated else (hint, ParameterInfo())
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    return kind, info


def _next(rest: list[str]) -> str:
    """The value of an option: the next word, unless it looks like an option itself."""
    if not rest or (rest[0].startswith("-") and rest[0] != "-"):
        _refuse()
    return rest.pop(0)


def _value(text: str, kind: Any, info: OptionInfo) -> Any:
    if kind in (str, Path):
        return kind(text) if text else _refuse()
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else _refuse()
    if kind not in (int, float) or not text.isascii() or "_" in text or text.strip() != text:
        _refuse()
    number = kind(text)
    low, high = (-math.inf if info.min is None else info.min), (math.inf if info.max is None else info.max)
    return number if math.isfinite(number) and low <= number <= high else _refuse()


def _refuse() -> Any:
    raise _NotPlain
