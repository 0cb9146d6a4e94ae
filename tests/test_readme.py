"""What README.md and the guides tell people to type exists, and their numbers are those of the committed results."""

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import typer

from basnet_benchmarks.report import save_all
from basnet_benchmarks.results import brief, read_result
from basnet_runtime.media.image.pictures import write_picture

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
CARD = ROOT / "docs" / "model-card.md"
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


def test_the_tables_of_results_are_those_of_the_json(tmp_path):
    """`make report` writes them; by hand it is the command of benchmarks/README.md."""
    text = RESULTS.read_text(encoding="utf-8")
    again = tmp_path / "results.md"
    again.write_text(text, encoding="utf-8")
    save_all(sorted(REPORTS.glob("*.json")), again, overwrite=True)
    assert again.read_text(encoding="utf-8") == text
    assert text.count("\n### ") > len(list(REPORTS.glob("*.json"))) > 5


def test_the_model_cards_scores_are_those_of_the_json():
    text = CARD.read_text(encoding="utf-8")
    (row,) = read_result(REPORTS / "accuracy-dev.json")["datasets"]
    assert f"**maxF {row['max_f']:.4f}, MAE {row['mae']:.4f}**" in text
    assert f"{row['pictures']} pairs of DUTS-TE" in text
    rows = read_result(REPORTS / "parity-dev.json")["candidates"]
    iou = next(row["report"]["boundary_iou"] for row in rows if row["precision"] == "int8")
    assert f"{iou:.3f} on the worst of the 200 pictures" in text
    threshold = read_result(REPORTS / "threshold-dev.json")["threshold"]
    assert f"score of {threshold:.3f}" in text


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results(path):
    """Each is small and brief, and names no folder of the machine it was measured on."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert not re.search(r'"/(?!proc/|sys/)\w', text)
    assert brief(read_result(path)) == read_result(path)


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
