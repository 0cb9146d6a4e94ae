"""Nothing phones home: what libraries leave in the home and temporary folders when they report is not there."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from basnet_runtime.media.image.pictures import write_picture
from basnet_runtime.open import BUILTIN
from tests.models import checkpoint_file, needs_openvino_plugin

ROOT = Path(__file__).parent.parent
# Each of these, set by continuous integration, silences the libraries by itself, and would hide what is looked for.
CI = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")
API = """
import sys
import basnet_runtime as bn
with bn.load() as model:
    model(sys.argv[1])
with bn.load(sys.argv[2], backend="onnxruntime") as model:
    model(sys.argv[1])
"""
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture
def left(tmp_path):
    """Runs Python in a bare home and gives what it left there and in the temporary folder, but for kept graphs."""
    write_picture(tmp_path / "photo.png", np.full((40, 60, 3), 90, np.uint8))
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()

    def run(*arguments, **variables):
        inherited = {name: value for name, value in os.environ.items() if name not in (*CI, "XDG_CACHE_HOME")}
        environment = {**inherited, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), **variables}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        found = (path for name in ("home", "tmp") for path in (tmp_path / name).rglob("*") if path.is_file())
        return [path for path in map(str, found) if "/.cache/basnet-deploy/graphs/" not in path]

    return run


def test_a_run_leaves_its_result_alone(left, tmp_path):
    for backend, model in (("onnxruntime", BUILTIN), ("openvino", BUILTIN), ("pytorch", checkpoint_file())):
        output = tmp_path / f"{backend}.png"
        options = ("--model", model, "--backend", backend, "--output", output)
        assert left("-c", "from basnet_runtime.command.cli import main; main()", tmp_path / "photo.png", *options) == []
        assert output.is_file()


@needs_openvino_plugin
def test_neither_does_the_provider(left, tmp_path):
    options = ("--model", BUILTIN, "--device", "openvino")
    assert left("-c", "from basnet_runtime.command.cli import main; main()", tmp_path / "photo.png", *options) == []


def test_neither_does_the_python_api(left, tmp_path):
    assert left("-c", API, tmp_path / "photo.png", BUILTIN) == []


@pytest.mark.slow
def test_neither_does_the_doctor(left):
    assert left("-c", "from basnet_runtime.doctor import examine; examine()") == []


def test_what_it_looks_for_is_there_without_it(left):
    """OpenVINO's own import in the same home, so that an empty folder says something."""
    assert left("-c", "import openvino, openvino_telemetry")


@pytest.mark.parametrize("module", sorted({script.split(":")[0] for script in SCRIPTS.values()}))
def test_every_command_silences_before_anything_is_imported(module, left):
    code = f"import {module}, os, sys; assert os.environ['ORT_DISABLE_TELEMETRY'] == os.environ['WANTED'];"
    code += "assert not {'onnxruntime', 'openvino'} & set(sys.modules)"
    left("-c", code, WANTED="1")
    left("-c", code, WANTED="0", ORT_DISABLE_TELEMETRY="0")  # who has set it knows why


def test_openvino_is_whole_afterwards(left):
    """Its converter, which reports too, works; and its sender can be imported by who wants it."""
    code = """
import sys
from basnet_runtime.backends.openvino import open_openvino
from pathlib import Path
open_openvino(Path(sys.argv[1])).close()
import openvino
assert openvino.convert_model(sys.argv[1]).inputs
import openvino_telemetry
assert openvino_telemetry.Telemetry
"""
    assert left("-c", code, BUILTIN) == []


def test_openvino_starts_where_there_is_no_home_folder(left):
    """Its telemetry would look for one, as in a container whose user has no entry, and end the import."""
    code = """
import os, pwd, sys
from pathlib import Path
def nobody(_):
    raise KeyError
pwd.getpwuid = nobody
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
from basnet_runtime.backends.openvino import open_openvino
open_openvino(Path(sys.argv[1]), threads=1).close()
"""
    assert left("-c", code, BUILTIN) == []
