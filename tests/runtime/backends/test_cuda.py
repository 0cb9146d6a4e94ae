"""Two modules of one shape: both have what `Cuda` asks, cuda-core has what is used of it, and a missing one is said."""

import ast
import inspect
from pathlib import Path

import pytest

from basnet_runtime.cuda import cuda_core, devices, py_cuda
from basnet_runtime.cuda.base import Cuda
from basnet_runtime.cuda.cuda_core import CudaCore
from basnet_runtime.cuda.devices import find_gpu, open_cuda
from basnet_runtime.cuda.py_cuda import PyCuda
from basnet_torch.errors import BackendUnavailable, UsageError
from tests.runtime.backends.fake_cuda import FakeCuda

METHODS = [name for name, member in vars(Cuda).items() if not name.startswith("_") and inspect.isfunction(member)]


@pytest.mark.parametrize("layer", [CudaCore, PyCuda, FakeCuda])
@pytest.mark.parametrize("name", METHODS)
def test_all_are_of_one_shape(layer, name):
    wanted, found = (list(inspect.signature(getattr(kind, name)).parameters.values()) for kind in (Cuda, layer))
    assert [(p.name, p.kind) for p in found] == [(p.name, p.kind) for p in wanted]


def test_the_shape_is_small():
    """A reader can check it: each method is a few lines, and both modules together are short."""
    assert len(METHODS) < 25
    for module in (cuda_core, py_cuda):
        tree = ast.parse(Path(module.__file__).read_text())
        lengths = [n.end_lineno - n.lineno for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        assert max(lengths) <= 20


@pytest.mark.parametrize(
    ("owner", "members"),
    [
        ("Device", ("set_current", "create_stream", "create_event", "allocate", "sync", "name", "compute_capability")),
        ("Stream", ("handle", "record", "wait", "sync", "close", "create_graph_builder", "from_handle")),
        ("Event", ("is_done", "sync", "close", "__sub__")),
        ("Buffer", ("handle", "copy_from", "close", "from_handle")),
        ("graph.GraphBuilder", ("begin_building", "end_building", "complete", "close")),
        ("graph.Graph", ("launch", "close")),
        ("LegacyPinnedMemoryResource", ("allocate",)),
        ("utils.StridedMemoryView", ("from_any_interface", "from_buffer", "__dlpack__")),
        ("system", ("get_user_mode_driver_version",)),
    ],
)
def test_cuda_core_has_what_is_used(owner, members):
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    found = core
    for part in owner.split("."):
        found = getattr(found, part)
    assert [name for name in members if not hasattr(found, name)] == []


def test_no_driver_is_said(monkeypatch):
    monkeypatch.setattr(devices, "has_nvidia_driver", lambda: False)
    assert find_gpu() is None
    with pytest.raises(BackendUnavailable, match=r"cuda:1: there is no NVIDIA driver"):
        open_cuda(1)


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setattr(devices, "has_nvidia_driver", lambda: True)
    with pytest.raises(BackendUnavailable, match=r"pycuda cannot be loaded .*pip install pycuda"):
        open_cuda(0, "pycuda")


def test_other_names_are_refused():
    with pytest.raises(UsageError, match="cuda-core or pycuda"):
        open_cuda(0, "cupy")
