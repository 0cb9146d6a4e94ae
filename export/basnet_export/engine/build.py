"""Build a TensorRT engine and its manifest from an ONNX file or a checkpoint.

path = build_engine(BuildConfig(model=Path("basnet.pth"), output=Path("fp16.plan")))

Types are the graph's; no builder flag changes them. The plan stays a pure TensorRT file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from basnet_export.config import refuse_existing
from basnet_export.engine.cache import BuiltEngine, EngineCache, cache_key
from basnet_export.engine.config import CURRENT, BuildConfig
from basnet_export.engine.inspect import engine_report, inspected_precisions
from basnet_export.engine.network import Convolution, PrecisionShare, convolutions_of, parse_onnx, precision_share
from basnet_export.engine.progress import BuildProgress, Interruptible, progress_monitor
from basnet_export.quantize.fp16_emulation import check_arithmetic
from basnet_runtime.backends.rtx_provider import is_rtx_plugin_loaded
from basnet_runtime.backends.tensorrt.library import TensorRT, open_tensorrt, plan_version
from basnet_runtime.backends.tensorrt.preflight import check_gpu
from basnet_runtime.cuda.base import Gpu
from basnet_runtime.cuda.devices import find_gpu
from basnet_runtime.engine_facts import EngineFacts, Profile, gpus_of
from basnet_runtime.kinds import Precision
from basnet_runtime.manifest import Manifest, adaptation_for, manifest_path, read_manifest
from basnet_runtime.onnx_file.adapt import adapted
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_runtime.parity import Picture
from basnet_torch import __version__
from basnet_torch.device import Device
from basnet_torch.errors import BackendUnavailable, EngineBuildError, MediaError, UsageError
from basnet_torch.files import atomic_write, scratch_folder

__all__ = ["build_engine", "cannot_build_here", "flavor_here"]

_LEAST_SHARE = 0.9  # of what is not kept in FP32 by name
_LEAST_OF_ALL = 0.5


def build_engine(config: BuildConfig, progress: BuildProgress | None = None) -> Path:
    """Write a plan and its manifest; return the plan's path.

    Args:
        config: What to build.
        progress: Receives progress callbacks.

    Raises:
        BackendUnavailable: TensorRT, or what exporting a checkpoint needs, is not installed, or there is no GPU to
            build on.
        EngineBuildError: The graph cannot be parsed or built, or is not in the precision it is named after.
        ModelFileError: The model cannot be read.
        ParityError: The exported graph does not compute what the checkpoint computes, or not in 16 bits.
        UsageError: The file exists already, or an option is not this flavor's.
        KeyboardInterrupt: The build was interrupted; nothing is left.
    """
    progress = progress or BuildProgress()
    library = open_tensorrt(config.flavor)
    if library.flavor == "rtx" and is_rtx_plugin_loaded():
        raise BackendUnavailable(
            "flavor rtx: this process has loaded ONNX Runtime's plug-in for RTX, whose library would build the plan; "
            "build it in a process of its own, as basnet-export engine does"
        )
    gpu = _gpu_to_build_on(library, config)
    refuse_existing(config.target, config.model, "model", overwrite=config.overwrite)
    with (
        atomic_write(config.target, overwrite=config.overwrite) as plan_path,  # both now: a full disk costs no build
        atomic_write(manifest_path(config.target), overwrite=config.overwrite) as record_path,
    ):
        with _onnx_file(config, progress) as onnx:
            graph, manifest = _read_graph(onnx)
        if config.check and not config.is_checkpoint and manifest.precision in ("fp16", "bf16"):
            progress.say(f"checking {manifest.precision} arithmetic")
            check_arithmetic(graph, manifest)
        profile = config.profile(manifest)
        cache = EngineCache(config.cache) if config.cache else None
        key = cache_key(graph, _as_it_builds(library), gpu, profile, config) if cache else ""
        built = cache.find(key) if cache else None
        if built is None:
            built = _built(config, library, gpu, graph, manifest, profile, progress)
            if cache:
                cache.keep(key, built, progress.say)
        else:
            progress.say(f"found the engine in {config.cache}")
        progress.say(f"{built.facts.plan_bytes:,} bytes for {gpus_of(built.facts)}")
        record = _record(manifest, built.facts, graph, library)
        plan_path.write_bytes(built.plan)
        if config.check and config.is_checkpoint:
            record = replace(record, parity=_receipt(config, plan_path, record, progress))
        record_path.write_text(record.to_json() + "\n", encoding="utf-8")
    return config.target


@cache
def _as_it_builds(library: TensorRT) -> TensorRT:
    """The library with the version that it writes into plans, told by a plan of one operation.

    TensorRT builds only on a GPU, where its bindings' version is taken.
    """
    if library.flavor != "rtx":
        return library
    trt = library.trt
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.mark_output(network.add_identity(network.add_input("x", trt.float32, (1,))).get_output(0))
    blob = builder.build_serialized_network(network, builder.create_builder_config())
    version = plan_version(bytes(memoryview(blob)[:64])) if blob is not None else None
    return replace(library, version=version or library.version)


def _read_graph(path: Path) -> tuple[bytes, Manifest]:
    """The graph to build with its manifest; of an adopted file the copy that runs."""
    manifest = read_manifest(path)
    with adapted(path, adaptation_for(path, manifest)) as runnable:
        header = read_onnx_header(runnable)
        tensors = {"input": header.inputs[0], "output": header.outputs[0], "activation": "none"}
        return runnable.read_bytes(), replace(manifest, **tensors)  # type: ignore[arg-type]


def _gpu_to_build_on(library: TensorRT, config: BuildConfig) -> Gpu | None:
    """The GPU to build on; TensorRT for RTX needs one only for `current`."""
    if library.flavor != "tensorrt" and CURRENT not in config.compute_capabilities:
        return None
    gpu = find_gpu()
    if gpu is None:
        other = "--flavor rtx" if library.flavor == "tensorrt" else "another --compute-capability"
        raise BackendUnavailable(
            f"{library} builds on the GPU that the engine is for, and this machine has no NVIDIA driver; "
            f"build there, or take {other}"
        )
    return gpu


def flavor_here() -> str:
    """The flavor that builds where none is asked; empty where none is installed."""
    try:
        return open_tensorrt("auto").flavor
    except BackendUnavailable:
        return ""


def cannot_build_here() -> str:
    """Say why no engine can be built for this machine's GPU, or nothing.

    Also empty where there is no GPU.

    Raises:
        BackendUnavailable: CUDA cannot use the GPU.
    """
    try:
        library = open_tensorrt("auto")
    except BackendUnavailable as error:
        return str(error)
    gpu = find_gpu()
    if library.flavor != "rtx" or gpu is None:
        return ""
    listed = _compute_capabilities(library)
    if gpu.compute_capability in listed:
        return ""
    return (
        f"{library} builds for compute capability {', '.join(listed)}, and {gpu.name} has {gpu.compute_capability}; "
        "install TensorRT"
    )


def _compute_capabilities(library: TensorRT) -> list[str]:
    """What TensorRT for RTX builds for, such as `8.6`."""
    known = library.trt.ComputeCapability.__members__
    return [f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM")]


def _record(manifest: Manifest, facts: EngineFacts, graph: bytes, library: TensorRT) -> Manifest:
    """Turn the graph's manifest into the plan's, without the graph's parity receipt."""
    return replace(
        manifest,
        kind="plan",
        engine=facts,
        onnx_sha256=manifest.onnx_sha256 or hashlib.sha256(graph).hexdigest(),
        parity=None,
        exporter={**manifest.exporter, str(library.trt.__name__): facts.version, "basnet-deploy": __version__},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _receipt(config: BuildConfig, plan: Path, record: Manifest, progress: BuildProgress) -> dict[str, Any] | None:
    """Prove exactly this plan, because two builds of one graph differ."""
    from basnet_export.checks import measure_parity
    from basnet_export.reference import Reference
    from basnet_export.samples import load_pictures
    from basnet_torch.checkpoint import load_checkpoint

    pictures = load_pictures(config.pictures)
    reason = _cannot_run_here(plan, record, pictures)
    if reason:
        progress.say(f"not proven: {reason}")
        return None
    progress.say("checking parity with PyTorch FP32 on the GPU")
    checkpoint = replace(load_checkpoint(config.model), preprocess=record.preprocess)
    with scratch_folder() as folder:
        path = folder / config.target.name
        path.symlink_to(plan.resolve())
        manifest_path(path).write_text(record.to_json(), encoding="utf-8")
        return measure_parity(path, record, Reference(checkpoint, pictures, Device("cuda"))).receipt()


def _cannot_run_here(plan: Path, record: Manifest, pictures: Sequence[Picture]) -> str:
    """The reason why the plan cannot run on this machine; empty where it can."""
    import torch

    assert record.engine is not None  # noqa: S101 - for the type checker
    profile = record.engine.profiles[0]
    try:
        gpu = find_gpu()
        if gpu is None:
            return "this machine has no NVIDIA driver"
        check_gpu(plan, record.engine, gpu.name, gpu.compute_capability)
    except BackendUnavailable as error:
        return str(error)
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__}, which runs the reference, sees no CUDA device"
    outside = [p.name for p in pictures if not profile.holds((profile.smallest[0], *p.image_HWC.shape))]
    if record.graph == "frame" and outside:
        return f"the engine does not take pictures of the size of {outside[0]}; give others with --pictures"
    return ""


@contextmanager
def _onnx_file(config: BuildConfig, progress: BuildProgress) -> Iterator[Path]:
    """Yield the model itself, or the checked export of a checkpoint."""
    if not config.is_checkpoint:
        yield config.model
        return
    from basnet_export.config import ExportConfig
    from basnet_export.onnx_export import export_onnx

    with scratch_folder() as folder:
        yield export_onnx(
            ExportConfig(
                checkpoint=config.model,
                output=folder / f"{config.model.stem}.onnx",
                precision=config.precision or "fp16",
                graph=config.graph or "tensor",
                size=config.size,
                int8_target="tensorrt" if config.precision in ("int8", "fp8") else "cpu",
                calibration=config.calibration,
                keep_fp32=config.keep_fp32,
                search_minutes=config.search_minutes,
                pictures=config.pictures,
                check=config.check,
            ),
            progress.say,
        )


def _built(
    config: BuildConfig,
    library: TensorRT,
    gpu: Gpu | None,
    graph: bytes,
    manifest: Manifest,
    profile: Profile,
    progress: BuildProgress,
) -> BuiltEngine:
    if manifest.quantized_for not in (None, "tensorrt"):  # activations with a zero point
        raise EngineBuildError(
            f"the graph is quantized for {manifest.quantized_for}; "
            f"export it again with --precision {manifest.precision} --target tensorrt"
        )
    library.messages.clear()
    builder = library.trt.Builder(library.logger)
    parsed = parse_onnx(library, builder, graph, manifest)
    for warning in parsed.warnings:
        progress.say(f"{library} warns: {warning}")
    convolutions = convolutions_of(library, parsed.network)
    share = _share(convolutions, manifest)
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
    plan = bytes(memoryview(blob))
    if gpu is not None:  # the finished engine can be asked
        told = inspected_precisions(engine_report(library, plan), convolutions)
        share = _share(convolutions, manifest, told)
    _save_timings(config, options, progress)
    facts = EngineFacts(
        flavor=library.flavor,
        version=plan_version(plan) or library.version,
        gpu=gpu.name if gpu else "",
        compute_capabilities=(gpu.compute_capability,) if gpu else config.compute_capabilities,
        driver=gpu.driver if gpu else "",
        cuda=gpu.cuda if gpu else "",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        profiles=(profile,),
        build_seconds=round(time.perf_counter() - began, 2),
        typed_layers=round(share.layers, 4),
        typed_flops=round(share.flops, 4),
        typed_by=share.source,
        flags=config.flags,
    )
    return BuiltEngine(plan=plan, facts=facts)


def _share(
    convolutions: Sequence[Convolution], manifest: Manifest, told: Mapping[str, Precision] | None = None
) -> PrecisionShare:
    """Measure the share of the manifest's precision.

    Raises:
        EngineBuildError: Too little is in it, of all or of what the manifest does not keep FP32 by name.
    """
    share = precision_share(convolutions, manifest.precision, told)
    kept = tuple(f"{part}." for part in manifest.keep_fp32)
    others = [each for each in convolutions if not f"{each.name}.".startswith(kept)]
    rest = precision_share(others, manifest.precision, told) if others else share
    for found, least, of in ((share, _LEAST_OF_ALL, ""), (rest, _LEAST_SHARE, " that nothing keeps FP32")):
        if found.flops < least:
            raise EngineBuildError(
                f"only {found.flops:.0%} of the convolutions' arithmetic{of} would be in {manifest.precision}, "
                f"at least {least:.0%} belong to an engine of that name; export the model with "
                f"--precision {manifest.precision}"
            )
    return share


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
        _load_timings(config.timing_cache, library, options)
    return options


def _load_timings(path: Path, library: TensorRT, options: Any) -> None:
    """Load kernel timings; refuse another file, because it would be overwritten."""
    try:
        known = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"timing cache {path}: cannot be read ({error.strerror}); name another file") from error
    library.messages.clear()
    timings = options.create_timing_cache(known)
    if timings is None or library.messages.warnings or not options.set_timing_cache(timings, ignore_mismatch=False):
        raise UsageError(f"timing cache {path}: is not one of {library} on this GPU; name another file")


def _set_compute_capabilities(config: BuildConfig, library: TensorRT, options: Any) -> None:
    """Set the devices that a plan of TensorRT for RTX is for."""
    if not config.compute_capabilities:
        return
    known = library.trt.ComputeCapability.__members__
    options.num_compute_capabilities = len(config.compute_capabilities)
    for index, text in enumerate(config.compute_capabilities):
        name = "CURRENT" if text == CURRENT else "SM" + text.replace(".", "")
        if name not in known:
            raise UsageError(
                f"compute capability {text}: {library} builds for {', '.join(_compute_capabilities(library))}"
            )
        options.set_compute_capability(known[name], index)


def _save_timings(config: BuildConfig, options: Any, progress: BuildProgress) -> None:
    """Save kernel timings for the next build."""
    if config.timing_cache is None:
        return
    timings = options.get_timing_cache()
    try:
        with atomic_write(config.timing_cache, overwrite=True) as beside:
            beside.write_bytes(bytes(memoryview(timings.serialize())))
    except (MediaError, OSError) as error:  # the engine is there, and is worth more than its timings
        progress.say(f"the timings are not kept: {error}")
