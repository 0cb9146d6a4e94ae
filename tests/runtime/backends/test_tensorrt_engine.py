"""Loading a plan, over a stand-in for the library with no more names than the real ones have: what is asked of it."""

import enum
from types import SimpleNamespace

import pytest

from basnet_runtime.backends.tensorrt import engine as trt_engine
from basnet_runtime.backends.tensorrt.engine import LoadedEngine, runtime_cache_path
from basnet_runtime.backends.tensorrt.library import Messages, TensorRT
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_torch.errors import BackendUnavailable
from tests.runtime.backends.fake_cuda import FakeCuda


class EngineValidity(enum.Enum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Causes(enum.Enum):
    VERSION_MISMATCH, UNSUPPORTED_CC = 1, 2


class Cache:
    def __init__(self):
        self.kernels = b""

    def deserialize(self, blob):
        self.kernels = blob
        return True

    def serialize(self):
        return self.kernels + b"+compiled"


class Library:
    """Records what it is asked."""

    def __init__(self, validity=EngineValidity.VALID, causes=0, loads=True, memory=64, takes_shapes=True):
        self.validity, self.causes, self.loads, self.memory, self.takes = validity, causes, loads, memory, takes_shapes
        self.asked, self.caches, self.contexts = [], [], []
        self.trt = SimpleNamespace(
            Runtime=lambda logger: self.runtime,
            EngineValidity=EngineValidity,
            EngineInvalidityDiagnostics=Causes,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph"),
        )
        self.runtime = SimpleNamespace(
            engine_host_code_allowed=False,
            get_engine_validity=lambda plan: (self.validity, self.causes),
            deserialize_cuda_engine=lambda plan: self.engine if self.loads else None,
        )
        self.engine = SimpleNamespace(
            device_memory_size_v2=memory,
            create_runtime_config=self.config,
            create_execution_context=self.context,
        )

    def config(self):
        return SimpleNamespace(
            cuda_graph_strategy=None,
            set_execution_context_allocation_strategy=self.asked.append,
            create_runtime_cache=lambda: self.caches.append(Cache()) or self.caches[-1],
            set_runtime_cache=lambda cache: self.asked.append(cache) or True,
        )

    def context(self, config):
        self.asked.append(config.cuda_graph_strategy)
        context = SimpleNamespace(memory=None, shapes=[])
        context.set_device_memory = lambda address, size: setattr(context, "memory", (address, size))
        context.set_input_shape = lambda name, shape: context.shapes.append((name, shape)) or self.takes
        self.contexts.append(context)
        return context


@pytest.fixture
def cuda():
    device = FakeCuda()
    with device.current():
        yield device
    assert device.live == {}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.plan"
    path.write_bytes(b"plan")
    return path


def facts(**changes):
    shape = (1, 3, 4, 4)
    known = {
        "flavor": "rtx",
        "version": "1.7.1.116",
        "gpu": "",
        "compute_capabilities": (),
        "driver": "",
        "plan_sha256": "ab" * 32,
        "plan_bytes": 4,
        "profiles": (Profile(smallest=shape, best=shape, largest=shape),),
        "build_seconds": 0.0,
        "typed_layers": 1.0,
        "typed_flops": 1.0,
    }
    return EngineFacts(**{**known, **changes})


def loaded(library, cuda, plan, **changes):
    about = facts(**changes)
    opened = TensorRT(flavor=about.flavor, version=about.version, trt=library.trt, logger=None, messages=Messages())
    return LoadedEngine(opened, cuda, plan, about)


def test_contexts_share_one_working_memory(cuda, plan):
    library = Library()
    engine = loaded(library, cuda, plan)
    first, second = (engine.context("image", (1, 3, 4, 4)) for _ in range(2))
    assert first.memory == second.memory
    assert first.memory[1] == 64
    assert first.shapes == [("image", (1, 3, 4, 4))]
    assert "user managed" in library.asked
    engine.close()


def test_an_engine_without_working_memory(cuda, plan):
    engine = loaded(Library(memory=0), cuda, plan)
    assert engine.context("image", (1, 3, 4, 4)).memory is None
    engine.close()


def test_rtx_captures_by_itself_and_keeps_what_it_compiled(cuda, plan):
    library = Library()
    engine = loaded(library, cuda, plan)
    assert engine.captures_itself
    for _ in range(2):
        engine.context("image", (1, 3, 4, 4))
    assert library.asked.count("whole graph") == 2
    assert len(library.caches) == 1
    engine.close()
    kept = runtime_cache_path(facts(), "9.0")
    assert kept.read_bytes() == b"+compiled"
    assert kept.name == "abababababababab-1.7.1.116-sm9.0.kernels"
    again = loaded(library, cuda, plan)
    again.context("image", (1, 3, 4, 4))
    again.close()
    assert kept.read_bytes() == b"+compiled+compiled"


def test_a_folder_that_cannot_be_written_costs_nothing_else(cuda, plan, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(plan))
    engine = loaded(Library(), cuda, plan)
    engine.context("image", (1, 3, 4, 4))
    engine.close()


def test_tensorrt_has_no_such_cache_and_leaves_capturing_to_the_caller(cuda, plan):
    library = Library()
    engine = loaded(library, cuda, plan, flavor="tensorrt", version="10.16.1.11")
    engine.context("image", (1, 3, 4, 4))
    assert not engine.captures_itself
    assert library.asked == ["user managed", None]
    engine.close()
    assert not runtime_cache_path(facts(), "9.0").parent.exists()


def test_what_rtx_knows_of_the_device_is_said_before_loading(cuda, plan):
    library = Library(validity=EngineValidity.INVALID, causes=Causes.UNSUPPORTED_CC.value, loads=False)
    message = r"does not run it on Fake GPU, compute capability 9\.0: UNSUPPORTED_CC; build it here with"
    with pytest.raises(BackendUnavailable, match=message):
        loaded(library, cuda, plan)


def test_a_plan_that_does_not_load(cuda, plan):
    with pytest.raises(BackendUnavailable, match="cannot load it: the library gave no reason"):
        loaded(Library(loads=False), cuda, plan)


def test_a_shape_that_is_refused(cuda, plan):
    engine = loaded(Library(takes_shapes=False), cuda, plan)
    with pytest.raises(BackendUnavailable, match=r"refuses the shape \(1, 3, 4, 4\)"):
        engine.context("image", (1, 3, 4, 4))
    engine.close()


def test_host_code_only_of_version_compatible_plans(cuda, plan):
    for compatible in (False, True):
        library = Library()
        loaded(library, cuda, plan, flags={"version_compatible": compatible}).close()
        assert library.runtime.engine_host_code_allowed is compatible


def test_the_real_library_has_these_names():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert {cause.name: cause.value for cause in Causes}.items() <= {
        name: member.value for name, member in trt.EngineInvalidityDiagnostics.__members__.items()
    }.items()
    assert [v.name for v in EngineValidity] == list(trt.EngineValidity.__members__)
    assert trt_engine.LoadedEngine.context  # its other names: tests/export/engine/test_tensorrt_api.py
