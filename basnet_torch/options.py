"""Options of commands: a dataclass field holds an option's help, flags and check.

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        batch: int = field(default=1, metadata=option("Pictures per network run.", min=1))

        def __post_init__(self) -> None:
            check(self)

    @app.command()
    @takes(Config)
    def run(**values: Any) -> None:
        config = build(Config, values)

The command's signature is made from the fields, in their order. This module does not import typer: a command that reads
plain command lines by itself starts without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from inspect import Parameter, Signature
from operator import not_
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from basnet_torch.errors import UsageError

__all__ = ["GROUP", "OVERWRITE", "Option", "argument", "build", "check", "option", "options_of", "takes"]

Config = TypeVar("Config")
Command = TypeVar("Command", bound=Callable[..., None])
_HINTS: dict[type[Any], dict[str, Any]] = {}
GROUP: Mapping[str, Any] = {"group": True}  # metadata of a field whose own fields are options


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One option or argument as it is typed.

    Attributes:
        name: Of the field.
        kind: Type of the value, without None.
        default: Value when it is left out; `MISSING` where it must be typed.
        flags: As typed, with their dashes; empty for an argument.
        settings: Settings of typer: `help`, and where they are given `metavar`, `min` and `max`.
    """

    name: str
    kind: Any
    default: Any
    flags: tuple[str, ...]
    settings: Mapping[str, Any]

    def parameter(self) -> Parameter:
        """Make typer's parameter of it."""
        import typer

        if self.flags == (f"--{self.name.replace('_', '-')}",) and self.kind is not bool:
            info: Any = typer.Option(**self.settings)
        elif self.flags:
            info = typer.Option(*self.flags, **self.settings)
        else:
            info = typer.Argument(**self.settings)
        kind = self.kind | None if self.default is None else self.kind
        default = Parameter.empty if self.default is MISSING else self.default
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def option(
    text: str,
    *flags: str,
    parse: Callable[[Any], Any] | None = None,
    must: tuple[str, Callable[[Any], bool]] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Make the metadata of a field that is an option.

    Args:
        text: The help.
        *flags: Names with dashes; none takes `--name`, and for a bool `--name` and `--no-name`.
        parse: From the typed value to the field's; `operator.not_` for a flag that turns off what is on.
        must: What the value has to be, in words and as a test, where `min` and `max` do not say it.
        **settings: `min`, `max` and `metavar` as in typer; `typed`, the type on the command line where it is not the
            field's; `shown`, the default there; `required`, although the field has a default.
    """
    return {"help": text, "flags": flags, "parse": parse, "must": must, **settings}


def argument(metavar: str, text: str, **settings: Any) -> dict[str, Any]:
    """Make the metadata of a field that is an argument; see `option`."""
    return {**option(text, metavar=metavar, **settings), "flags": None}


OVERWRITE = option("Replace an existing file.", "--overwrite")


def takes(*configs: type[Any]) -> Callable[[Command], Command]:
    """Decorate a command to take the options of these classes as keyword arguments."""

    def decorate(command: Command) -> Command:
        parameters = [one.parameter() for config in configs for one in options_of(config)]
        given = inspect.signature(command, eval_str=True).parameters.values()
        own = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in given if one.kind != Parameter.VAR_KEYWORD]
        command.__signature__ = Signature([*own, *parameters])  # type: ignore[attr-defined]
        return command

    return decorate


def options_of(config: type[Any]) -> tuple[Option, ...]:
    """List the options of a dataclass, those of its groups in their place."""
    found: list[Option] = []
    for own in fields(config):
        if own.metadata.get("group"):
            found += options_of(_hints(config)[own.name])
        elif "help" in own.metadata:
            found.append(_option(own, config))
    return tuple(found)


def build(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a configuration from the values of its options; other values are left out.

    Raises:
        UsageError: A value does not fit.
    """
    made: dict[str, Any] = {}
    for own in fields(config):  # type: ignore[arg-type]
        hint = _hints(config)[own.name]
        if own.metadata.get("group"):
            made[own.name] = build(hint, values)
        elif own.name in values:
            value, parse = values[own.name], own.metadata.get("parse")
            if parse and value is not None:
                value = parse(value)
            elif _is_list(hint):
                value = tuple(value or ())
            made[own.name] = value
    return config(**made)


def check(config: Any) -> None:
    """Refuse values outside the fields' metadata or Literal types; None is allowed.

    Raises:
        UsageError: The first of them, by name, with its rule.
    """
    for own in fields(config):
        value = getattr(config, own.name)
        low, high, must = (own.metadata.get(name) for name in ("min", "max", "must"))
        choices = _choices(_hints(type(config))[own.name])
        if value is None:
            continue
        if choices and value not in choices:
            rule = f"one of {', '.join(map(str, choices))}"
        elif must is not None and not must[1](value):
            rule = must[0]
        elif (low is not None and not value >= low) or (high is not None and not value <= high):
            rule = f"at least {low}" if high is None else f"{low} to {high}"
        else:
            continue
        raise UsageError(f"{own.name} is {value!r}; it must be {rule}")


def _hints(config: type[Any]) -> dict[str, Any]:
    if config not in _HINTS:
        _HINTS[config] = get_type_hints(config)
    return _HINTS[config]


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is tuple and get_args(hint)[1:] == (...,)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    kinds = [each for each in get_args(hint) if each is not NoneType]
    return kinds[0] if len(kinds) == 1 else hint


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, also of several joined by `|`."""
    if get_origin(hint) in (Union, UnionType):
        parts = [each for each in get_args(hint) if each is not NoneType]
        return sum(map(_choices, parts), ()) if all(map(_choices, parts)) else ()
    return get_args(hint) if get_origin(hint) is Literal else ()


def _option(own: Field[Any], config: type[Any]) -> Option:
    given = {name: value for name, value in own.metadata.items() if name not in ("must", "flags")}
    flags, parse = own.metadata["flags"], given.pop("parse")
    kind = _without_none(given.pop("typed", _hints(config)[own.name]))
    default = own.default_factory() if own.default_factory is not MISSING else own.default
    if parse is not_:
        default = not default
    elif parse and "typed" not in own.metadata:
        kind = str
        if default not in (None, MISSING):
            default = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    elif _is_list(kind):
        kind, default = list[get_args(kind)[0]], default or None  # type: ignore[misc]
    default = given.pop("shown", default)
    if given.pop("required", False) or own.default is own.default_factory:
        default = MISSING
    if flags == ():
        name = own.name.replace("_", "-")
        flags = (f"--{name}/--no-{name}",) if kind is bool else (f"--{name}",)
    return Option(name=own.name, kind=kind, default=default, flags=flags or (), settings=given)
