"""A loaded plan: execution contexts on one working memory, RTX's kernel cache."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from basnet_runtime.backends.tensorrt.library import TensorRT
from basnet_runtime.cuda.base import Cuda, DeviceBytes
from basnet_runtime.engine_facts import EngineFacts, Shape
from basnet_torch.errors import BackendUnavailable, MediaError
from basnet_torch.files import atomic_write

__all__ = ["LoadedEngine", "runtime_cache_path"]


class LoadedEngine:
    """One plan on one device; only one of its contexts may run at a time.

    All of them share one working memory.

    Attributes:
        captures_itself: Whether the library makes CUDA graphs by itself. TensorRT for RTX does, because only it knows
            when the kernels of a shape have been compiled; TensorRT leaves it to the caller.
    """

    def __init__(self, library: TensorRT, cuda: Cuda, path: Path, facts: EngineFacts) -> None:
        """Call it where the device is current.

        Raises:
            BackendUnavailable: The library cannot load the plan.
        """
        self._library = library
        self._cuda = cuda
        self._path = path
        self.captures_itself = library.flavor == "rtx"
        self._kernels_path = runtime_cache_path(facts, cuda.gpu.compute_capability)
        self._kernels: Any = None
        self._memory: DeviceBytes | None = None
        library.messages.clear()
        self._runtime = library.trt.Runtime(library.logger)
        if facts.flags.get("version_compatible"):
            self._runtime.engine_host_code_allowed = True  # such a plan carries code; its digest was checked
        plan = path.read_bytes()
        self._refuse_invalid(plan)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendUnavailable(
                f"{path}: {library} cannot load it: {library.messages.reason()}; build it again here"
            )
        size = int(self._engine.device_memory_size_v2)
        if size:
            self._memory = cuda.device_bytes(size)

    def _refuse_invalid(self, plan: bytes) -> None:
        """TensorRT for RTX can say in words why a plan does not run on this device."""
        if self._library.flavor != "rtx":
            return
        trt = self._library.trt
        verdict, causes = self._runtime.get_engine_validity(plan)
        if verdict != trt.EngineValidity.INVALID:
            return
        known = trt.EngineInvalidityDiagnostics.__members__
        named = [name for name, bit in known.items() if int(causes) & int(bit.value)]
        gpu = self._cuda.gpu
        raise BackendUnavailable(
            f"{self._path}: {self._library} does not run it on {gpu.name}, compute capability "
            f"{gpu.compute_capability}: {', '.join(named) or self._library.messages.reason()}; "
            "build it here with --compute-capability current, or with --flavor tensorrt"
        )

    def context(self, tensor: str, shape: Shape) -> Any:
        """An execution context for one input shape, on the shared working memory.

        Raises:
            BackendUnavailable: The library makes none, or refuses the shape.
        """
        trt = self._library.trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._library.flavor == "rtx":
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.set_runtime_cache(self._known_kernels(config))
        context = self._engine.create_execution_context(config)
        if context is None:
            raise BackendUnavailable(f"{self._path}: no room to run it: {self._library.messages.reason()}")
        if self._memory is not None:
            context.set_device_memory(self._memory.address, self._memory.size)
        if not context.set_input_shape(tensor, shape):
            raise BackendUnavailable(f"{self._path}: the engine refuses the shape {shape}")
        return context

    def _known_kernels(self, config: Any) -> Any:
        """What earlier runs compiled, and this one will; a file that does not fit any more is not used."""
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            with suppress(OSError):  # the first run on this machine
                self._kernels.deserialize(self._kernels_path.read_bytes())
        return self._kernels

    def _keep_kernels(self) -> None:
        if self._kernels is None:
            return
        compiled = bytes(memoryview(self._kernels.serialize()))
        with (
            suppress(MediaError, OSError),  # costs the next start some seconds, and nothing else
            atomic_write(self._kernels_path, overwrite=True) as beside,
        ):
            beside.write_bytes(compiled)

    def close(self) -> None:
        """Free everything; the device must be current and the last context gone."""
        try:
            self._keep_kernels()
        finally:
            self._kernels = self._engine = self._runtime = None
            memory, self._memory = self._memory, None
            if memory is not None:
                self._cuda.free(memory)


def runtime_cache_path(facts: EngineFacts, compute_capability: str) -> Path:
    """Return the kernel cache of one plan on one kind of GPU.

    It is kept under XDG_CACHE_HOME, or ~/.cache.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "basnet-deploy" / f"{facts.plan_sha256[:16]}-{facts.version}-sm{compute_capability}.kernels"
