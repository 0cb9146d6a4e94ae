"""Every module of the four packages: exports listed, sorted and there; no cycles; folders of a size to look over."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGES = ("basnet_benchmarks", "basnet_export", "basnet_runtime", "basnet_torch")
HEAVY = ("av", "cv2", "onnx", "onnxruntime", "openvino", "pyvips", "tensorrt", "torch")


def modules():
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield name
        yield from (found.name for found in pkgutil.walk_packages(package.__path__, f"{name}."))


def isort_order(name):
    """Constants, then classes, then the rest, as ruff's RUF022 sorts."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name


@pytest.mark.parametrize("name", sorted(modules()))
def test_all_is_there_sorted_and_true(name):
    module = importlib.import_module(name)
    assert isinstance(module.__all__, list)
    assert module.__all__ == sorted(module.__all__, key=isort_order)
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [given for given in module.__all__ if not hasattr(module, given)]
    assert not missing


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(name):
    code = f"import sys, {name}\nprint(sorted({set(HEAVY)!r} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


ROOT = Path(__file__).parent.parent
FOLDERS = ("basnet_torch", "export/basnet_export", "runtime/basnet_runtime", "benchmarks/basnet_benchmarks")


def sources():
    """Every module's file by its name."""
    files = {}
    for folder in FOLDERS:
        top = ROOT / folder
        for path in top.rglob("*.py"):
            parts = (top.name, *path.relative_to(top).with_suffix("").parts)
            files[".".join(part for part in parts if part != "__init__")] = path
    return files


def imported(path, known):
    """What a module imports anywhere in its text: within functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in whole)


def cycle_of(files):
    graph = {
        name: {other for other in imported(path, files) if other in files} - {name} for name, path in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_in_a_circle():
    files = sources()
    assert len(files) > 100
    assert cycle_of(files) == []


def test_a_circle_for_type_checkers_would_be_found(tmp_path):
    texts = {
        "one": "from two import A",
        "two": "if TYPE_CHECKING:\n    import three",
        "three": "def f():\n    import one",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert set(cycle_of({name: tmp_path / name for name in texts})) == set(texts)


def test_folders_hold_at_most_fifteen_modules():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [Path(line) for line in listed.splitlines()] or [path.relative_to(ROOT) for path in sources().values()]
    count = Counter(path.parent for path in paths if path.parts[0] != "tests")
    assert {folder: files for folder, files in count.items() if files > 15} == {}
