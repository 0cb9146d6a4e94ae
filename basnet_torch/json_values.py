"""JSON values of dataclasses, read by msgspec; errors name the key.

    config = from_plain(json.loads(text), TrainConfig)
    text = json.dumps(to_plain(config))

A key that is missing takes the field's default, unless the class has `MAY_LACK`, the only names that a file may lack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from types import GenericAlias
from typing import Any, Literal, NotRequired, TypedDict, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["from_plain", "keys", "list_of", "to_plain"]

Value = TypeVar("Value")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|\[\.\.\.\]")
_FAULT = re.compile(r"(.*?)(?: - at (?:key in )?`\$(.*)`)?", re.DOTALL)
_NAMES = {dict: "object", list: "array", type(None): "null"}  # others as in Python


def to_plain(value: Any, where: str = "") -> Any:
    """Convert dataclasses, tuples and paths to the dicts, lists and texts of JSON.

    Raises:
        ValueError: A number is not finite, which JSON cannot hold.

    >>> to_plain({"size": (1, 2), "file": PurePath("a.onnx")})
    {'size': [1, 2], 'file': 'a.onnx'}
    """
    if is_dataclass(value):
        value = {own.name: getattr(value, own.name) for own in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where.lstrip('.') or 'value'} is {value}; it must be finite")
    return str(value) if isinstance(value, PurePath) else value


def from_plain(values: Any, kind: type[Value]) -> Value:
    """Convert JSON values to a dataclass or a tuple of them; inverts `to_plain`.

    Raises:
        ValueError: A key is unknown or missing, or a value is of another type or not allowed.

    >>> from basnet_torch.spec import Postprocess
    >>> from_plain({"stretch": 1, "empty_below": 0.1}, Postprocess)
    Traceback (most recent call last):
    ...
    ValueError: stretch is 1; it must be bool
    """
    import msgspec  # a start without a file to read has no use for it

    plain = to_plain(values)
    try:
        made = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_fault(str(error), plain, kind)) from error
    _check_keys(plain, made, "")
    return made


def keys(texts: str, numbers: str = "", counts: str = "", **others: Any) -> Any:
    """Create the type of a JSON object from its keys' names; other keys are allowed.

    Args:
        texts: Keys of texts, with spaces between.
        numbers: Keys of numbers, or of null where a number is not finite.
        counts: Keys of whole numbers.
        **others: Key to type; one whose type may be None may be missing too.
    """
    make: Any = TypedDict
    kinds: dict[str, Any] = {
        **dict.fromkeys(texts.split(), str),
        **dict.fromkeys(numbers.split(), float | None),
        **dict.fromkeys(counts.split(), int),
        **{name: NotRequired[kind] if type(None) in get_args(kind) else kind for name, kind in others.items()},
    }
    return make("Values", kinds)


def list_of(kind: Any) -> Any:
    """Make the type of a list."""
    return GenericAlias(list, (kind,))


def _check_keys(plain: Any, made: Any, where: str) -> None:
    """Refuse keys that msgspec passes over, in every dataclass of a value."""
    if isinstance(plain, list):
        for index, item in enumerate(plain):
            _check_keys(item, made[index], f"{where}[{index}]")
    elif isinstance(plain, dict) and is_dataclass(made):
        known = [own.name for own in fields(made)]
        prefix = f"{where.lstrip('.')}: " if where else ""
        if unknown := sorted(set(plain) - set(known)):
            raise ValueError(f"{prefix}unknown fields {', '.join(unknown)}; this version knows {', '.join(known)}")
        if missing := sorted(set(known) - set(plain) - set(getattr(made, "MAY_LACK", known))):
            raise ValueError(f"{prefix}missing fields {', '.join(missing)}; this version reads {', '.join(known)}")
        for name, item in plain.items():
            _check_keys(item, getattr(made, name), f"{where}.{name}")


def _fault(text: str, plain: Any, kind: Any) -> str:
    """Say msgspec's error with the value and what is allowed there."""
    found = _FAULT.fullmatch(text)
    reason, path = (found[1], found[2] or "") if found else (text, "")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", reason):
        return f"{f'{path}.{missing[1]}'.lstrip('.')} is missing"
    steps = [match.groups() for match in _STEP.finditer(path)]
    expected = re.fullmatch(r"Expected (.*), got (.*)", reason)
    invalid = reason.startswith("Invalid enum value")
    if not expected and not invalid:  # said by the class itself
        return f"{path.lstrip('.')}: {reason}" if path else reason
    got = expected[2].strip("`") if expected else ""
    places = list(_places(plain, steps, ""))
    where, value = next(
        (place for place in places if _NAMES.get(type(place[1]), type(place[1]).__name__) == got), places[0]
    )
    rule = expected[1].replace("`", "") if expected else f"one of {', '.join(map(str, _choices(kind, steps)))}"
    return f"{where.lstrip('.') or 'it'} is {value!r}; it must be {rule}"


def _places(plain: Any, steps: list[tuple[str | None, ...]], where: str) -> Iterator[tuple[str, Any]]:
    """Each value that a path of msgspec may mean: it does not say which key of a mapping."""
    if not steps:
        yield where, plain
        return
    name, index = steps[0]
    if name is not None:
        yield from _places(plain[name], steps[1:], f"{where}.{name}")
    elif index is not None:
        yield from _places(plain[int(index)], steps[1:], f"{where}[{index}]")
    else:
        for key, item in plain.items():
            yield from _places(item, steps[1:], f"{where}.{key}")


def _choices(kind: Any, steps: list[tuple[str | None, ...]]) -> tuple[Any, ...]:
    """The values of the Literal at that path of a type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if is_dataclass(kind) or is_typeddict(kind):
        return _choices(get_type_hints(kind)[str(steps[0][0])], steps[1:])
    rest = steps[1:] if get_origin(kind) in (tuple, list, Mapping, dict) else steps
    return next((found for part in get_args(kind) if (found := _choices(part, rest))), ())
