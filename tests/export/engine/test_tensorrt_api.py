"""Every name of TensorRT that the code uses exists: in the installed release, and in lists of the others."""

import ast
import json
from pathlib import Path

import pytest

from basnet_export.engine import build as engine
from basnet_export.engine import network as engine_network
from basnet_export.engine import progress as engine_progress
from basnet_runtime.backends.tensorrt import backend as trt
from basnet_runtime.backends.tensorrt import buffers as trt_ring
from basnet_runtime.backends.tensorrt import engine as trt_engine
from basnet_runtime.backends.tensorrt import library as tensorrt_library

# Of which class the variables and attributes are whose members the code uses, by module.
BUILDING = {
    "builder": ("Builder",),
    "options": ("IBuilderConfig",),
    "shapes": ("IOptimizationProfile",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "problem": ("ParserError",),
    "layer": ("IConvolutionLayer", "ILayer"),
    "reads": ("ITensor",),
    "gives": ("ITensor",),
    "tensor": ("ITensor",),
    "timings": ("ITimingCache",),
}
CLASSES = {
    engine: BUILDING,
    engine_network: BUILDING,
    engine_progress: BUILDING,
    trt: {"loose": ("IExecutionContext",)},
    trt_ring: {"context": ("IExecutionContext",)},
    trt_engine: {
        "_runtime": ("Runtime",),
        "_engine": ("ICudaEngine",),
        "config": ("IRuntimeConfig",),
        "context": ("IExecutionContext",),
        "_kernels": ("IRuntimeCache",),
    },
    tensorrt_library: {},
}
LISTS = ("tensorrt-10.16", "tensorrt-11.4", "tensorrt-rtx-1.7")
ONLY_RTX = {
    "ComputeCapability",
    "set_compute_capability",
    "num_compute_capabilities",
    "CudaGraphStrategy",
    "cuda_graph_strategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "get_engine_validity",
    "IRuntimeCache",
    "create_runtime_cache",
    "set_runtime_cache",
}


def uses():
    """(class, member) of variables, (name, member) of the module's classes, and ((), name) of the module itself."""
    found = set()
    for module, classes in CLASSES.items():
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
            owner, outer = name_of(node.value), name_of(getattr(node.value, "value", None))
            if owner == "trt":
                found.add(((), node.attr))
            elif outer == "trt":
                found.add(((node.value.attr,), node.attr))
            elif owner in classes:
                found.add((classes[owner], node.attr))
    return sorted(found)


def name_of(node):
    """Of a variable, and of an attribute as in `self._engine` and `library.trt`."""
    return getattr(node, "attr", None) or getattr(node, "id", None)


def has(classes, member, holds):
    """Whether one of the classes, or without any the module, has the member."""
    return any(holds(name, member) for name in classes or (None,))


def test_the_uses_are_found():
    assert ((), "Runtime") in uses()
    assert ((), "IProgressMonitor") in uses()
    assert (("ICudaEngine",), "create_execution_context") in uses()
    assert (("IRuntimeConfig",), "set_runtime_cache") in uses()
    assert (("Builder",), "build_serialized_network") in uses()
    assert (("BuilderFlag",), "VERSION_COMPATIBLE") in uses()
    assert (("IExecutionContext",), "execute_async_v3") in uses()
    assert (("IConvolutionLayer", "ILayer"), "kernel_size_nd") in uses()


@pytest.mark.parametrize(("classes", "member"), uses())
def test_installed_library_has_it(classes, member):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert has(classes, member, lambda name, member: hasattr(getattr(trt, name) if name else trt, member))


@pytest.mark.shared
@pytest.mark.parametrize("release", LISTS)
def test_other_releases_have_it(release, data_root):
    path = data_root.parent / "reference" / f"{release}-api.json"
    if not path.is_file():
        pytest.skip(f"no list {path.name} beside the data")
    known = json.loads(path.read_text())
    missing = [
        (classes, member)
        for classes, member in uses()
        if not has(classes, member, lambda name, member: member in (known.get(name, ()) if name else known))
        and not member.startswith("__")
        and not ({*classes, member} & ONLY_RTX and "rtx" not in release)
    ]
    assert not missing
