"""What README.md tells people to type exists: every command, subcommand and option."""

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import typer

from basnet_runtime.media.pictures import write_picture

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def command_lines():
    """Each line of the shell blocks that calls one of the project's commands."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("basnet-")]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_of_the_readme(line):
    name, *words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    (script,) = entry_points(group="console_scripts", name=name)
    command = typer.main.get_command(script.load().__globals__["app"])
    for word in list(words):
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            words.remove(word)
    known = {option for parameter in command.params for option in parameter.opts}
    assert not [word for word in words if word.startswith("-") and word not in known]
    assert not getattr(command, "commands", {}), "a subcommand is missing"


def test_there_are_command_lines():
    assert len(command_lines()) > 15


def test_measured_tables_are_those_of_the_reports():
    """Every row with a number of the section `Measured` stands in a file that a command wrote."""
    section = README.read_text(encoding="utf-8").split("## Measured")[1].split("### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    reports = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "reports").glob("*.md"))
    assert len(rows) > 10
    assert [row for row in rows if row not in reports] == []
    median = re.search(r"median of ([\d.]+) frames", section.replace("\n", " "))
    assert f"median {median[1]} frames per second" in reports


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", python_blocks())
def test_python_of_the_readme_runs(block, tmp_path, monkeypatch, write_video):
    """In a folder with photo.jpg and clip.mp4, with the built-in model; `image` is a picture."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 40:80] = (230, 60, 40)
    write_picture(tmp_path / "photo.jpg", image)
    write_video(tmp_path / "clip.mp4", [image] * 2)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {"image": image})
