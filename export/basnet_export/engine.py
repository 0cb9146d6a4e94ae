"""From an ONNX file or a checkpoint to a TensorRT engine with its manifest beside it.

path = build_engine(BuildConfig(model=Path("basnet.pth"), output=Path("fp16.plan")))

Types are the graph's: FP16 is written by the export, and no flag of the builder changes it. The plan stays a pure
TensorRT file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from basnet_export.build_config import BuildConfig
from basnet_export.engine_network import PrecisionShare, parse_onnx, precision_share
from basnet_export.engine_progress import BuildProgress, Interruptible, progress_monitor
from basnet_runtime.engine_facts import EngineFacts, Profile
from basnet_runtime.manifest import Manifest, manifest_path, read_manifest, sha256_of
from basnet_runtime.media.files import whole_file
from basnet_runtime.tensorrt_library import TensorRT, has_nvidia_driver, open_tensorrt
from basnet_torch import __version__
from basnet_torch.errors import BackendUnavailable, EngineBuildError, UsageError

__all__ = ["build_engine"]

_LEAST_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class _Built:
    """A finished engine."""

    plan: bytes
    facts: EngineFacts


def build_engine(config: BuildConfig, progress: BuildProgress | None = None) -> Path:
    """Write the plan and its manifest; returns the plan's path.

    Args:
        config: What to build.
        progress: Told what is being done and how far it has come.

    Raises:
        BackendUnavailable: TensorRT, or what exporting a checkpoint needs, is not installed, or there is no GPU to
            build on.
        EngineBuildError: The graph cannot be parsed or built, or is not in the precision it is named after.
        ModelFileError: The model cannot be read.
        ParityError: The exported graph does not compute what the checkpoint computes.
        UsageError: The file exists already, or an option is not this flavour's.
        KeyboardInterrupt: The build was interrupted; nothing is left.
    """
    progress = progress or BuildProgress()
    library = open_tensorrt(config.flavor)
    _refuse_existing(config)
    with _onnx_file(config, progress) as onnx:
        manifest = read_manifest(onnx)
        graph = onnx.read_bytes()
    built = _from_cache(config, library, graph, manifest)
    if built is None:
        built = _built(config, library, graph, manifest, progress)
        _to_cache(config, library, graph, built, manifest)
    else:
        progress.say(f"found the engine in {config.cache}")
    record = replace(
        manifest,
        kind="plan",
        engine=built.facts,
        onnx_sha256=hashlib.sha256(graph).hexdigest(),
        parity=None,  # that of the graph is not that of the plan
        exporter={**manifest.exporter, str(library.trt.__name__): library.version, "basnet-deploy": __version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if config.check and config.is_checkpoint and has_nvidia_driver():
        progress.say("checking parity with PyTorch FP32 on the GPU")
        record = replace(record, parity=_proven(config, built, record))
    with whole_file(config.target, overwrite=config.overwrite) as beside:
        beside.write_bytes(built.plan)
    with whole_file(manifest_path(config.target), overwrite=config.overwrite) as beside:
        beside.write_text(record.to_json() + "\n", encoding="utf-8")
    return config.target


def _proven(config: BuildConfig, built: _Built, record: Manifest) -> dict[str, Any]:
    """The receipt of exactly this plan, because two builds of one graph differ."""
    from basnet_export.checks import check_parity
    from basnet_export.samples import load_pictures
    from basnet_torch.checkpoint import load_checkpoint

    checkpoint = replace(load_checkpoint(config.model), preprocess=record.preprocess)
    with TemporaryDirectory(prefix="basnet-") as folder:
        path = Path(folder) / config.target.name
        path.write_bytes(built.plan)
        manifest_path(path).write_text(record.to_json(), encoding="utf-8")
        return check_parity(path, record, checkpoint, load_pictures(config.pictures), device="cuda")


def _refuse_existing(config: BuildConfig) -> None:
    for path in (config.target, manifest_path(config.target)):
        if path.exists() and not config.overwrite:
            raise UsageError(f"{path} exists already; --overwrite replaces it")


@contextmanager
def _onnx_file(config: BuildConfig, progress: BuildProgress) -> Iterator[Path]:
    """The model itself, or a checkpoint's export, checked against PyTorch."""
    if not config.is_checkpoint:
        yield config.model
        return
    from basnet_export.config import ExportConfig
    from basnet_export.onnx_graph import export_onnx

    with TemporaryDirectory(prefix="basnet-") as folder:
        yield export_onnx(
            ExportConfig(
                checkpoint=config.model,
                output=Path(folder) / f"{config.model.stem}.onnx",
                precision=config.precision or "fp16",
                graph=config.graph or "tensor",
                size=config.size,
                pictures=config.pictures,
                check=config.check,
            ),
            progress.say,
        )


def _built(config: BuildConfig, library: TensorRT, graph: bytes, manifest: Manifest, progress: BuildProgress) -> _Built:
    if library.flavor == "tensorrt" and not has_nvidia_driver():
        raise BackendUnavailable(
            f"{library} builds on the GPU that the engine is for, and this machine has no NVIDIA driver; "
            "build there, or take --flavor rtx"
        )
    library.messages.clear()
    builder = library.trt.Builder(library.logger)
    parsed = parse_onnx(library, builder, graph, manifest)
    share = precision_share(library, parsed.network, manifest.precision)
    _refuse_other_precision(manifest, share)
    profile = config.profile(manifest)
    options = _builder_config(config, library, builder, manifest, profile)
    progress.say(f"building with {library} for {profile}")
    began = time.perf_counter()
    with Interruptible() as interruptible:
        options.progress_monitor = progress_monitor(library, progress, interruptible)
        blob = builder.build_serialized_network(parsed.network, options)
    if interruptible.interrupted:
        raise KeyboardInterrupt
    if blob is None:
        raise EngineBuildError(f"{library} cannot build the engine: {library.messages.reason()}")
    _save_timings(config, options)
    plan = bytes(memoryview(blob))
    return _Built(plan=plan, facts=_facts(config, library, plan, profile, share, time.perf_counter() - began))


def _refuse_other_precision(manifest: Manifest, share: PrecisionShare) -> None:
    if share.flops < _LEAST_SHARE:
        raise EngineBuildError(
            f"only {share.flops:.0%} of the convolutions' arithmetic would be in {manifest.precision}, "
            f"at least {_LEAST_SHARE:.0%} belong to an engine of that name; export the model with "
            f"--precision {manifest.precision}"
        )


def _builder_config(config: BuildConfig, library: TensorRT, builder: Any, manifest: Manifest, profile: Profile) -> Any:
    trt = library.trt
    options = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    shapes.set_shape(manifest.input.name, profile.smallest, profile.best, profile.largest)
    options.add_optimization_profile(shapes)
    options.clear_flag(trt.BuilderFlag.TF32)  # FP32 means FP32
    options.builder_optimization_level = config.optimization_level
    options.tiling_optimization_level = getattr(trt.TilingOptimizationLevel, config.tiling.upper())
    options.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if config.workspace_mib is not None:
        options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib << 20)
    if config.aux_streams is not None:
        options.max_aux_streams = config.aux_streams
    if config.version_compatible:
        options.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if config.hardware_compatible:
        options.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    _set_compute_capabilities(config, library, options)
    if config.timing_cache is not None:
        known = config.timing_cache.read_bytes() if config.timing_cache.is_file() else b""
        options.set_timing_cache(options.create_timing_cache(known), ignore_mismatch=False)
    return options


def _set_compute_capabilities(config: BuildConfig, library: TensorRT, options: Any) -> None:
    """Name the devices a plan of TensorRT for RTX is for."""
    if not config.compute_capabilities:
        return
    known = library.trt.ComputeCapability.__members__
    options.num_compute_capabilities = len(config.compute_capabilities)
    for index, text in enumerate(config.compute_capabilities):
        name = "SM" + text.replace(".", "")
        if name not in known:
            there = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
            raise UsageError(f"compute capability {text}: {library} builds for {there}")
        options.set_compute_capability(known[name], index)


def _save_timings(config: BuildConfig, options: Any) -> None:
    """What was timed serves the next build."""
    if config.timing_cache is None:
        return
    with whole_file(config.timing_cache, overwrite=True) as beside:
        beside.write_bytes(bytes(memoryview(options.get_timing_cache().serialize())))


def _facts(
    config: BuildConfig, library: TensorRT, plan: bytes, profile: Profile, share: PrecisionShare, seconds: float
) -> EngineFacts:
    from basnet_runtime.cuda.device import find_gpu

    gpu = find_gpu() if library.flavor == "tensorrt" else None
    return EngineFacts(
        flavor=library.flavor,
        version=library.version,
        gpu=gpu.name if gpu else "",
        compute_capabilities=(gpu.compute_capability,) if gpu else config.compute_capabilities,
        driver=gpu.driver if gpu else "",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        profiles=(profile,),
        build_seconds=round(seconds, 2),
        typed_layers=round(share.layers, 4),
        typed_flops=round(share.flops, 4),
        flags=config.flags,
    )


def _cache_entry(config: BuildConfig, library: TensorRT, graph: bytes, manifest: Manifest) -> Path | None:
    """Where an engine with this content would be: graph, library, device, shapes and flags."""
    if config.cache is None:
        return None
    from basnet_runtime.cuda.device import find_gpu

    gpu = find_gpu() if library.flavor == "tensorrt" else None
    content = {
        "graph": hashlib.sha256(graph).hexdigest(),
        "library": [library.flavor, library.version],
        "gpu": asdict(gpu) if gpu else None,
        "profile": asdict(config.profile(manifest)),
        "flags": config.flags,
        "compute_capabilities": config.compute_capabilities,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return config.cache / f"{key[:32]}.plan"


def _from_cache(config: BuildConfig, library: TensorRT, graph: bytes, manifest: Manifest) -> _Built | None:
    """A finished engine; one that was damaged since is built anew."""
    entry = _cache_entry(config, library, graph, manifest)
    if entry is None or not entry.is_file() or not manifest_path(entry).is_file():
        return None
    facts = EngineFacts.from_dict(json.loads(manifest_path(entry).read_text(encoding="utf-8")))
    return _Built(plan=entry.read_bytes(), facts=facts) if sha256_of(entry) == facts.plan_sha256 else None


def _to_cache(config: BuildConfig, library: TensorRT, graph: bytes, built: _Built, manifest: Manifest) -> None:
    entry = _cache_entry(config, library, graph, manifest)
    if entry is None:
        return
    with whole_file(entry, overwrite=True) as beside:
        beside.write_bytes(built.plan)
    with whole_file(manifest_path(entry), overwrite=True) as beside:
        beside.write_text(json.dumps(asdict(built.facts), indent=1), encoding="utf-8")
