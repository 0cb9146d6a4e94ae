"""What a user's wheel holds: the four packages with their data files, and nothing else."""

import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from basnet_runtime.backends import openvino_provider

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return ZipFile(wheel).namelist()


def test_top_level(names):
    """No module called `export` or `runtime`, no tests."""
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"basnet_torch", "basnet_export", "basnet_runtime", "basnet_benchmarks"}


@pytest.mark.parametrize("package", ["basnet_torch", "basnet_export", "basnet_runtime", "basnet_benchmarks"])
def test_types_are_marked(names, package):
    assert f"{package}/py.typed" in names


@pytest.mark.parametrize(
    "name",
    [
        "basnet_runtime/parity.toml",
        "basnet_runtime/models/basnet-lite.onnx",
        "basnet_runtime/models/basnet-lite.onnx.json",
        "basnet_runtime/models/basnet-lite-int8.onnx",
        "basnet_runtime/models/basnet-lite-int8.onnx.json",
        "basnet_runtime/models/basnet-lite.safetensors",
        "basnet_runtime/models/README.md",
        "basnet_export/pictures/coffee.jpg",
        "basnet_benchmarks/report.html.j2",
    ],
)
def test_data_files_are_there(names, name):
    assert name in names


def test_every_module_of_the_sources_is_there(names):
    folders = {
        "basnet_torch": ROOT / "basnet_torch",
        "basnet_export": ROOT / "export" / "basnet_export",
        "basnet_runtime": ROOT / "runtime" / "basnet_runtime",
        "basnet_benchmarks": ROOT / "benchmarks" / "basnet_benchmarks",
    }
    for package, folder in folders.items():
        modules = {f"{package}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert modules
        assert modules <= set(names)


def test_the_license_travels(names):
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_extra_for_openvinos_plugin_asks_for_an_onnxruntime_that_loads_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = next(line for line in extras["openvino-ep"] if line.startswith("onnxruntime>="))
    assert asked.split(";")[0] == f"onnxruntime>={'.'.join(map(str, openvino_provider._OLDEST))}"
