"""What README.md and the guides tell people to type exists, and its numbers are those of the committed reports."""

import json
import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import typer

from basnet_benchmarks.documents import rewrite
from basnet_benchmarks.report import SavedReport, markdown, save_all
from basnet_benchmarks.tables import COMMANDS
from basnet_runtime.media.pictures import write_picture

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CARD = ROOT / "runtime" / "basnet_runtime" / "models" / "README.md"
REPORTS = ROOT / "benchmarks" / "reports"


def texts():
    """README.md and the guides that it leads to."""
    return [
        README,
        ROOT / "docs" / "results.md",
        *(ROOT / folder / "README.md" for folder in ("basnet_torch", "runtime", "export", "benchmarks")),
    ]


def command_lines():
    """Each line of the shell blocks that calls one of the project's commands."""
    blocks = [
        b for text in texts() for b in re.findall(r"```sh\n(.*?)```", text.read_text(encoding="utf-8"), re.DOTALL)
    ]
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
    assert not [word for word in words if word.startswith("-") and word not in known | {"-"}]
    assert not getattr(command, "commands", {}), "a subcommand is missing"


def test_there_are_command_lines():
    assert len(command_lines()) > 50


@pytest.mark.parametrize("path", texts(), ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("document", [README, CARD], ids=["README", "model card"])
def test_measured_numbers_are_those_of_the_reports(document):
    """What stands between markers is what the committed JSON gives; `basnet-bench tables` mends it."""
    assert not rewrite(document, check=True), f"run basnet-bench tables {document.relative_to(ROOT)}"


def test_every_table_of_measured_numbers_stands_between_markers():
    section = README.read_text(encoding="utf-8").split("## Measured")[1].split("### ")[0]
    outside = re.sub(r"<!-- (?:table|value): .*?<!-- end -->", "", section, flags=re.DOTALL)
    assert section.count("<!-- table: ") >= 4
    assert [line for line in outside.splitlines() if line.startswith("|")] == []
    assert not re.search(r"\d+\.\d+", outside), "a number that no command wrote"


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_reports(path, tmp_path):
    """Each is brief, names no folder of the machine it was measured on, and its Markdown is made from it."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert not re.search(r'"/(?!proc/|sys/)\w', text)
    if json.loads(text).get("command") in COMMANDS:  # the others' scripts write both files
        assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(SavedReport.read(path))
        save_all([path], tmp_path / "brief.json", overwrite=False, brief=True)
        assert json.loads((tmp_path / "brief.json").read_text()) == json.loads(text)


def test_every_committed_table_has_its_report():
    assert {path.stem for path in REPORTS.glob("*.md")} == {path.stem for path in REPORTS.glob("*.json")}


def python_blocks():
    runnable = [README, ROOT / "runtime" / "README.md"]
    return [
        b for text in runnable for b in re.findall(r"```python\n(.*?)```", text.read_text(encoding="utf-8"), re.DOTALL)
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_python_of_the_readme_runs(block, tmp_path, monkeypatch, write_video):
    """In a folder with photo.jpg and clip.mp4, with the built-in model; `image` is a picture."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 40:80] = (230, 60, 40)
    write_picture(tmp_path / "photo.jpg", image)
    write_video(tmp_path / "clip.mp4", [image] * 2)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {"image": image})
