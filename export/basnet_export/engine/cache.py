"""Engine cache keyed by graph, library, GPU, shapes and flags."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from basnet_export.engine.config import BuildConfig
from basnet_runtime.backends.tensorrt.library import TensorRT
from basnet_runtime.cuda.base import Gpu
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_runtime.manifest import manifest_path
from basnet_torch.errors import BackendUnavailable, MediaError
from basnet_torch.files import atomic_write
from basnet_torch.json_values import from_plain, to_plain

__all__ = ["BuiltEngine", "EngineCache", "cache_key"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """A finished engine: its plan and its facts."""

    plan: bytes
    facts: EngineFacts


def cache_key(graph: bytes, library: TensorRT, gpu: Gpu | None, profile: Profile, config: BuildConfig) -> str:
    """Hash what an engine depends on; the graph without its metadata.

    Raises:
        BackendUnavailable: onnx, which reads the graph, is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailable("--cache needs onnx; pip install 'basnet-deploy[export]'") from error
    model = onnx.load_model_from_string(graph)
    model.ClearField("metadata_props")
    content = {
        "graph": hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        "library": [library.flavor, library.version],
        "gpu": asdict(gpu) if gpu else None,
        "profile": asdict(profile),
        "flags": config.flags,
        "compute_capabilities": config.compute_capabilities,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of compressed plans, each with its facts beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> BuiltEngine | None:
        """Look up an engine; None where it is missing or damaged."""
        path = self._path(key)
        try:
            facts = from_plain(json.loads(manifest_path(path).read_text(encoding="utf-8")), EngineFacts)
            plan = zlib.decompress(path.read_bytes())
        except (OSError, ValueError, zlib.error):
            return None
        return BuiltEngine(plan=plan, facts=facts) if hashlib.sha256(plan).hexdigest() == facts.plan_sha256 else None

    def keep(self, key: str, built: BuiltEngine, say: Callable[[str], None]) -> None:
        """Store an engine; report a folder that cannot be written, and continue."""
        path = self._path(key)
        try:
            with atomic_write(path, overwrite=True) as beside:
                beside.write_bytes(zlib.compress(built.plan))
            with atomic_write(manifest_path(path), overwrite=True) as beside:
                beside.write_text(json.dumps(to_plain(built.facts), indent=1), encoding="utf-8")
        except (MediaError, OSError) as error:
            say(f"the engine is not kept in the cache: {error}")

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.plan"
