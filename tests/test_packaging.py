"""What a user's wheel holds: the four packages with their data files, and nothing else."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

from basnet_runtime.backends import plugins

ROOT = Path(__file__).parents[1]
BROUGHT = {"pycuda"}  # taken in place of cuda-core where a user has it; it is compiled against the user's CUDA


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


@pytest.mark.parametrize("extra", ["cpu", "gpu", "openvino-ep", "rtx-ep"])
def test_the_extras_ask_for_an_onnxruntime_that_loads_plugins(extra):
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra][0]
    assert asked.split(";")[0].split(">=")[1] == ".".join(map(str, plugins.OLDEST))


def declared(*extras: str) -> set[str]:
    """The distributions that pyproject.toml names: those of a plain install and of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folders: list[str]) -> dict[str, str]:
    """The top-level packages that the modules of some folders import, with a module that does."""
    found = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    ours = {"basnet_torch", "basnet_export", "basnet_runtime", "basnet_benchmarks", "tests", "pictures"}
    return {name: path for name, path in found.items() if name not in ours | BROUGHT | sys.stdlib_module_names}


@pytest.mark.parametrize(
    "folders", [["basnet_torch", "export", "runtime", "benchmarks"], ["tests", "docs"]], ids="/".join
)
def test_what_is_imported_is_declared(folders):
    """What only another package brings along is missing on the day when that package no longer asks for it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - (set() if "tests" in folders else {"dev"})
    asked, installed = declared(*extras), packages_distributions()
    missing = {
        name: path
        for name, path in imported(folders).items()
        if not {canonical(by) for by in [*installed.get(name, []), name]} & asked
    }
    assert not missing
