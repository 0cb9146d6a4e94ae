"""What one photo in a process of its own loads and reads, and that plain command lines mean what typer reads."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from basnet_runtime.command import cli
from basnet_runtime.command.arguments import plain_arguments
from basnet_runtime.command.config import RunConfig, Shown
from basnet_runtime.media.image.pictures import write_picture
from basnet_torch.options import options_of, takes

OPTIONS = (*options_of(RunConfig), *options_of(Shown))

NEVER = {
    "av",
    "concurrent.futures",
    "importlib.metadata",
    "onnx",
    "pydantic",
    "rich",
    "tempfile",
    "tensorrt",
    "torch",
    "typer",
}
ONLY_ONE = {"onnxruntime", "openvino"}
_RUN = """
import json, sys
from basnet_runtime.command.cli import main
sys.argv = ["basnet-run", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("options", "library"),
    [
        (["--precision", "fp32", "--backend", "onnxruntime"], "onnxruntime"),
        (["--precision", "fp32", "--backend", "openvino", "-o", "out.webp"], "openvino"),
        (["--precision", "fp32", "--kind", "cutout", "--threads=1"], "onnxruntime"),
    ],
)
def test_one_photo_loads_what_it_needs(options, library, tmp_path):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    write_picture(tmp_path / "photo.jpg", np.full((40, 60, 3), 90, np.uint8))
    command = [sys.executable, "-c", _RUN, "photo.jpg", "--overwrite", *options]
    for _ in range(2):  # the first start may have a graph to optimize and keep
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(answer.stdout))
    assert loaded & (NEVER | ONLY_ONE) == {library}
    assert "openvino.tools.ovc" not in loaded
    videos = {name for name in loaded if name.startswith("basnet_runtime.media.video.")}
    assert {name.rpartition(".")[2] for name in videos} <= {"motion_jpeg", "open", "options"}
    assert "1 frames in" in answer.stderr


def test_one_photo_is_loaded_without_collections_of_garbage(tmp_path):
    write_picture(tmp_path / "photo.jpg", np.full((40, 60, 3), 90, np.uint8))
    code = (
        "import gc\nfrom basnet_runtime.command.cli import main\nbefore = gc.get_stats()\n"
        "try:\n    main()\nfinally:\n"
        "    print(gc.isenabled(), *(b['collections'] - a['collections'] for a, b in zip(before, gc.get_stats())))"
    )
    command = [sys.executable, "-c", code, "photo.jpg"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    enabled, young, middle, full = answer.stdout.split()
    assert enabled == "True"
    assert int(young) <= 10  # 56 with the collector enabled from the start
    assert (int(middle) <= 2, full) == (True, "0")


@pytest.fixture
def without_collector():
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("without_collector")
def test_garbage_is_collected_once_work_begins():
    with cli._Bar(shown=False) as bar:
        assert not gc.isenabled()
        bar.started("clip.mp4", 0)
        assert gc.isenabled()


@pytest.mark.usefixtures("without_collector")
def test_garbage_is_collected_while_a_watch_waits_for_work(monkeypatch):
    seen = []
    monkeypatch.setattr("basnet_runtime.command.run.follow", lambda *_: seen.append(gc.isenabled()))
    cli._run(RunConfig(inputs=("in",)), Shown(watch=True))
    assert seen == [True]


def typers(words):
    """What typer reads, or the exit code."""
    seen = {}
    app = typer.Typer()

    @app.command()
    @takes(RunConfig, Shown)
    def record(**values):
        seen.update(values)

    answer = CliRunner().invoke(app, words)
    return seen if answer.exit_code == 0 else answer.exit_code


@pytest.mark.parametrize(
    "line",
    [
        "photo.jpg",
        "a.jpg b.jpg -o out --kind color:#20c060 --format webp",
        "--overwrite a.jpg --json --quiet --json --page 2",
        "- -o -",
        "in -o out --watch --recursive --skip-existing --keep-suffix",
        "a.jpg --model=m.onnx --backend openvino --device cuda:1 --threads 3 --precision bf16 --batch 4",
        "a.jpg --engine m.plan --cuda pycuda --threshold 0.5 --feather=2 --refine-edges --empty-weak",
        "c.mp4 --codec av1 --quality 80 --start 1:30 --end 300f --resume --no-sound --hwaccel none --stabilize",
        "a.jpg --max-pixels 5 --feather .5 --threshold 1e-1",
    ],
)
def test_plain_lines_mean_what_typer_reads(line):
    words = line.split()
    values = plain_arguments(OPTIONS, words)
    assert values is not None
    assert values == typers(words)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", 2),
        ("--help", 0),
        ("a.jpg --help", 0),
        ("a.jpg --no-such", 2),
        ("a.jpg -o", 2),
        ("a.jpg --threads 0", 2),
        ("a.jpg --threads two", 2),
        ("a.jpg --threads 1_0", None),
        ("a.jpg --quality 101", 2),
        ("a.jpg --feather nan", None),
        ("a.jpg --threshold 0.5.1", 2),
        ("a.jpg --format bmp", 2),
        ("a.jpg --format PNG", None),
        ("a.jpg --overwrite=yes", 2),
        ("a.jpg --kind mask --kind blur", None),
        ("a.jpg -oout", None),
        ("-- -odd.jpg", None),
        ("--keep-weak a.jpg", 2),
        ("a.jpg -o --json", None),
        ("--json", 2),
    ],
)
def test_other_lines_are_left_to_typer(line, code):
    assert plain_arguments(OPTIONS, line.split()) is None
    if code:
        assert typers(line.split()) == code


def test_an_empty_value_is_left_to_typer():
    assert plain_arguments(OPTIONS, ["a.jpg", "-o", ""]) is None


@pytest.mark.parametrize(("words", "code"), [(["none.jpg"], 1), (["a.jpg", "--kind", "odd"], 2), (["--odd"], 2)])
def test_exit_codes_of_the_command(words, code, tmp_path):
    command = [sys.executable, "-c", "from basnet_runtime.command.cli import main; main()", *words]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == code
    assert "Traceback" not in answer.stderr
    assert answer.stderr


def test_a_reader_that_has_gone_is_no_traceback(tmp_path):
    command = [sys.executable, "-c", "from basnet_runtime.command.cli import main; main()", "none.jpg", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in told
    assert "BrokenPipe" not in told


def test_a_bar_is_for_several_frames_on_a_terminal():
    with cli._Bar(shown=True) as bar:
        bar.started("photo.jpg", 1)
        bar.advanced()
        assert bar._progress is None
        bar.started("pictures", 3)
        bar.advanced()
        assert bar._progress.tasks[0].completed == 1
        bar.started("clip.mp4", 0)
        assert [task.total for task in bar._progress.tasks] == [None]
    with cli._Bar(shown=False) as bar:
        bar.started("pictures", 3)
        bar.advanced()
        assert bar._progress is None
