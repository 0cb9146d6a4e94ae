"""What README.md and the guides tell people to type exists, and their figures are those of the committed reports."""

import hashlib
import importlib
import importlib.util
import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer

from basnet_benchmarks.report import save_all
from basnet_benchmarks.results import brief, read_result
from basnet_runtime.media.image.pictures import write_picture

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results.md"
REPORTS = ROOT / "benchmarks" / "reports"


def script(name):
    """docs/NAME.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = script("update_tables")


def texts():
    """README.md, CONTRIBUTING.md, the guides and docs/."""
    return [
        README,
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / folder / "README.md" for folder in ("basnet_torch", "runtime", "export", "benchmarks")),
    ]


def command_lines():
    """Each line of the shell blocks that calls one of the project's commands."""
    blocks = [
        b for text in texts() for b in re.findall(r"```sh\n(.*?)```", text.read_text(encoding="utf-8"), re.DOTALL)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line.removeprefix(".venv/bin/").startswith("basnet-")]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_of_the_readme(line):
    name, *words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    (script,) = entry_points(group="console_scripts", name=name)
    command = typer.main.get_command(importlib.import_module(script.module).app)
    for word in list(words):
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            words.remove(word)
    known = {option for parameter in command.params for option in parameter.opts}
    assert not [word for word in words if word.startswith("-") and word not in known | {"-"}]
    assert not getattr(command, "commands", {}), "a subcommand is missing"


def test_there_are_command_lines():
    assert len(command_lines()) > 50


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
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


@pytest.mark.parametrize("path", TABLES.BLOCKS, ids=lambda path: path.name)
def test_the_tables_of_documents_are_those_of_the_json(path):
    """`python docs/update_tables.py` writes them."""
    assert TABLES.renewed(path) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["accuracy-dev", "accuracy-dev-int8", "parity-dev"])
def test_scores_are_of_the_built_in_weights(name):
    result = read_result(REPORTS / f"{name}.json")
    rows = [row for row in result.get("candidates", [result]) if (TABLES.MODELS / row["model"]).is_file()]
    prints = [row["fingerprint"] for row in rows]  # an FP16 file is exported, not built in, and has its own
    assert prints
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (TABLES.CHECKPOINT, TABLES.INT8)]
    assert {text.split("/")[0] for text in prints} <= set(digests)


@pytest.mark.parametrize(
    "path", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"], ids=lambda path: path.stem
)
def test_files_that_are_named_exist(path):
    """Paths from the root; NAME stands for a new file."""
    tops = "basnet_torch|runtime|export|benchmarks|tests|docs|findings"
    named = re.findall(rf"(?<![\w/.])(?:{tops})/(?:\w+/)*(?:\w+\.\w+)?", path.read_text(encoding="utf-8"))
    assert len(named) > 15
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_the_readme_is_a_landing_page():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_the_picture_of_the_readme_is_of_the_built_in_weights(tmp_path):
    """`make demo DEMO_PICTURE=docs/images/demo.jpg` draws it; a level or two is another CPU's rounding."""
    kept = ROOT / "docs" / "images" / "demo.jpg"
    assert f"({kept.relative_to(ROOT)})" in README.read_text(encoding="utf-8")
    assert kept.stat().st_size <= 150_000
    script("pictures").save("demo", tmp_path / "demo.jpg")
    before, now = (
        cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) for path in (kept, tmp_path / "demo.jpg")
    )
    assert before.shape == now.shape
    assert np.abs(before.astype(np.float32) - now).mean() < 0.2


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results(path):
    """Each is small and brief, and names no folder of the machine it was measured on."""
    text = path.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert not re.search(r'"/(?!proc/|sys/)\w', text)
    assert brief(read_result(path)) == read_result(path)


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", python_blocks(ROOT / "runtime" / "README.md"))
def test_python_of_the_guide_runs(block, tmp_path, monkeypatch, write_video):
    """In a folder with photo.jpg and clip.mp4, with the built-in model; `image` is a picture."""
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 40:80] = (230, 60, 40)
    write_picture(tmp_path / "photo.jpg", image)
    write_video(tmp_path / "clip.mp4", [image] * 2)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "runtime/README.md", "exec"), {"image": image})


def test_python_of_the_readme_prints_what_it_shows(monkeypatch, capsys):
    """In a checkout; the score may differ in its third digit, because FP32 runs where INT8 cannot."""
    (block,) = python_blocks(README)
    (shown,) = re.findall(r"```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(block, str(README), "exec"), {})
    number = re.compile(r"\d+\.\d+")
    printed = capsys.readouterr().out
    assert number.sub("?", printed) == number.sub("?", shown)
    assert [float(x) for x in number.findall(printed)] == pytest.approx(
        [float(x) for x in number.findall(shown)], abs=0.01
    )
