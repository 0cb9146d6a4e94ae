"""Every name of TensorRT that the code uses exists: in the installed release, and in lists of the others."""

import ast
import json
from pathlib import Path

import pytest

from basnet_export import engine, engine_network
from basnet_runtime import tensorrt_library
from basnet_runtime.backends import trt as backend

# Of which class the variables are whose members the code uses.
CLASSES = {
    "builder": ("Builder",),
    "options": ("IBuilderConfig",),
    "shapes": ("IOptimizationProfile",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "error": ("ParserError",),
    "layer": ("IConvolutionLayer", "ILayer"),
    "reads": ("ITensor",),
    "gives": ("ITensor",),
    "tensor": ("ITensor",),
    "_context": ("IExecutionContext",),
}
SOURCES = (engine, engine_network, backend, tensorrt_library)
LISTS = ("tensorrt-10.16", "tensorrt-11.4", "tensorrt-rtx-1.7")


def uses():
    """(class, member) of variables, and (name, member) of what is taken from the module `trt` itself."""
    found = set()
    for module in SOURCES:
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner = getattr(node.value, "id", getattr(node.value, "attr", None))
            if owner in CLASSES and module is not tensorrt_library:
                found.add((CLASSES[owner], node.attr))
            inner = node.value
            if (
                isinstance(inner, ast.Attribute)
                and getattr(inner.value, "id", getattr(inner.value, "attr", "")) == "trt"
            ):
                found.add(((inner.attr,), node.attr))
    return sorted(found)


def test_the_uses_are_found():
    assert (("Builder",), "build_serialized_network") in uses()
    assert (("BuilderFlag",), "VERSION_COMPATIBLE") in uses()
    assert (("IExecutionContext",), "execute_async_v3") in uses()
    assert (("IConvolutionLayer", "ILayer"), "kernel_size_nd") in uses()


@pytest.mark.parametrize(("classes", "member"), uses())
def test_installed_library_has_it(classes, member):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert any(hasattr(getattr(trt, name), member) for name in classes)


@pytest.mark.shared
@pytest.mark.parametrize("release", LISTS)
def test_other_releases_have_it(release, data_root):
    path = data_root.parent / "reference" / f"{release}-api.json"
    if not path.is_file():
        pytest.skip(f"no list {path.name} beside the data")
    known = json.loads(path.read_text())
    only_rtx = {"ComputeCapability", "set_compute_capability", "num_compute_capabilities"}
    missing = [
        (classes, member)
        for classes, member in uses()
        if not any(member in known.get(name, ()) for name in classes)
        and not member.startswith("__")
        and not ({*classes, member} & only_rtx and "rtx" not in release)
    ]
    assert not missing
