"""Every module of the four packages: what it gives out is listed, sorted and there; importing a package is cheap."""

import importlib
import pkgutil
import subprocess
import sys

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
