"""Options of commands from dataclass fields: signatures, values, and the checks that Python users meet too."""

import math
from dataclasses import dataclass, field
from operator import not_
from pathlib import Path
from typing import Literal

import pytest
import typer
from typer.testing import CliRunner

from basnet_torch.errors import UsageError
from basnet_torch.options import GROUP, argument, build, check, option, options_of, takes


def numbers(text):
    return tuple(int(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    start: int | None = field(default=None, metadata=option("Begin here.", parse=int))
    sound: bool = field(default=True, metadata=option("Leave sound out.", "--no-sound", parse=not_))


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    inputs: tuple[Path, ...] = field(metadata=argument("INPUT...", "Files."))
    kind: Literal["a", "b"] | None = field(default=None, metadata=option("Kind."))
    inner: Inner = field(default_factory=Inner, metadata=GROUP)
    share: float = field(default=0.5, metadata=option("Share.", must=("in 0..1", lambda share: 0 <= share <= 1)))
    count: int = field(default=1, metadata=option("Count.", "-n", "--count", min=1, max=9))
    sizes: tuple[int, ...] = field(default=(1, 2), metadata=option("Sizes.", parse=numbers))
    pair: tuple[int, int] = field(default=(3, 4), metadata=option("Pair."))
    named: tuple[str, ...] = field(default=(), metadata=option("Names.", "--name"))
    fast: bool = field(default=True, metadata=option("Fast."))
    hidden: int = 7

    def __post_init__(self):
        check(self)


def typed(*words):
    """What a command gets, and its outcome."""
    seen = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @takes(Config)
    def command(context: typer.Context, **values):
        seen.append((context.info_name, build(Config, values)))

    return CliRunner().invoke(app, words), seen


def test_left_out_options_are_the_fields_defaults():
    answer, seen = typed("x")
    assert answer.exit_code == 0
    assert seen[0][1] == Config(inputs=(Path("x"),))


def test_typed_options_reach_their_fields():
    line = "x y --kind b --start 4 --no-sound --share 1 -n 9 --sizes 5,6,7 --pair 8 9 --name p --name q --no-fast"
    _, seen = typed(*line.split())
    assert seen[0][1] == Config(
        inputs=(Path("x"), Path("y")),
        kind="b",
        inner=Inner(start=4, sound=False),
        share=1.0,
        count=9,
        sizes=(5, 6, 7),
        pair=(8, 9),
        named=("p", "q"),
        fast=False,
    )


def test_help_is_that_of_the_fields():
    text = typed("--help")[0].stdout
    for part in ("INPUT...", "Begin here.", "--no-sound", "-n, --count", "[default: 1; 1<=x<=9]", "[default: 1,2]"):
        assert part in text
    assert text.index("--kind") < text.index("--start") < text.index("--share")
    assert "hidden" not in text


@pytest.mark.parametrize("words", [(), ("x", "--count", "0"), ("x", "--kind", "c"), ("x", "--hidden", "3")])
def test_what_does_not_fit_is_a_usage_error(words):
    assert typed(*words)[0].exit_code == 2


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"kind": "c"}, "kind is 'c'; it must be one of a, b"),
        ({"share": 1.5}, "share is 1.5; it must be in 0..1"),
        ({"share": math.nan}, "share is nan; it must be in 0..1"),
        ({"count": 0}, "count is 0; it must be 1 to 9"),
        ({"count": 10}, "count is 10; it must be 1 to 9"),
    ],
)
def test_checks_hold_in_python(fields, line):
    with pytest.raises(UsageError) as caught:
        Config(inputs=(), **fields)
    assert str(caught.value) == line


def test_options_are_named_once():
    names = [one.name for one in options_of(Config)]
    assert names == ["inputs", "kind", "start", "sound", "share", "count", "sizes", "pair", "named", "fast"]
    assert options_of(Config)[2].default is None
    assert options_of(Config)[9].flags == ("--fast/--no-fast",)
