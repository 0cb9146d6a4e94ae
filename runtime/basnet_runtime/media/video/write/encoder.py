"""Video encoder selection and setup, in software or by NVENC."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from basnet_runtime.kinds import HwAccel, OutputKind
from basnet_runtime.media.video.options import Codec, VideoOptions
from basnet_runtime.media.video.stream_info import Color, VideoStreamInfo
from basnet_torch.errors import BackendUnavailable, MediaError, UsageError

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

__all__ = [
    "FULL_RANGE",
    "LIMITED_RANGE",
    "VIDEO_OUTPUTS",
    "Encoder",
    "check_rate",
    "choose_encoder",
    "codec_for",
    "containers_of",
    "encoded_color",
    "encoded_full_range",
    "open_encoder",
    "refused",
    "set_up",
    "swscale_matrix",
]

_CODECS: dict[str, tuple[Codec, ...]] = {  # the first is the usual one
    ".mkv": ("h264", "hevc", "av1", "vp9", "prores", "ffv1"),
    ".mov": ("h264", "hevc", "prores"),
    ".mp4": ("h264", "hevc", "av1", "vp9"),
    ".webm": ("vp9", "av1"),
}
_ALPHA_CODECS: dict[str, tuple[Codec, ...]] = {
    ".mkv": ("ffv1", "prores", "vp9"),
    ".mov": ("prores",),
    ".webm": ("vp9",),
}
_BY_USE = (".mp4", ".mov", ".webm", ".mkv")
VIDEO_OUTPUTS = tuple(sorted(_CODECS))
_LIBRARIES: dict[Codec, str] = {
    "h264": "libx264",
    "hevc": "libx265",
    "av1": "libsvtav1",
    "vp9": "libvpx-vp9",
    "prores": "prores_ks",
    "ffv1": "ffv1",
}
_NVENC: dict[Codec, str] = {"h264": "h264_nvenc", "hevc": "hevc_nvenc", "av1": "av1_nvenc"}
_NVENC_SMALLEST = 160  # pixels; below, some of its codecs refuse
_CRF_OF_WORST: dict[Codec, int] = {"h264": 51, "hevc": 51, "av1": 63, "vp9": 63}
_USUAL_CRF: dict[Codec, int] = {"h264": 18, "hevc": 20, "av1": 26, "vp9": 24}
_LARGE_PIXELS = 4_000_000
_ENCODE_THREADS = 4  # whatever the machine has: the bytes of H.264, HEVC and VP9 depend on it
_AV1_RATE = 240  # SVT-AV1 takes no more frames a second
LIMITED_RANGE, FULL_RANGE = 1, 2  # FFmpeg's numbers
_UNSPECIFIED, _SMPTE170M = 2, 6
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # H.273 number to swscale's; others decode as BT.601


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """One of FFmpeg's encoders with its settings.

    Attributes:
        codec: What a player needs.
        library: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        options: The encoder's own options.
        tag: Four letters that name the codec in a .mp4 or .mov, where the muxer's own choice does not play everywhere.
    """

    codec: Codec
    library: str
    pixels: str
    options: dict[str, str]
    tag: str = ""

    @property
    def in_hardware(self) -> bool:
        """Whether a GPU encodes."""
        return self.library.endswith("_nvenc")

    @property
    def described(self) -> str:
        """For people: which encoder, and where it runs."""
        return f"{self.library}, {'CUDA' if self.in_hardware else 'software'}"


def containers_of(kind: OutputKind, codec: Codec | None) -> list[str]:
    """Suffixes for a kind of result, most usual first; all if none fits a codec."""
    held = _ALPHA_CODECS if kind.has_alpha else _CODECS
    usual = [suffix for suffix in _BY_USE if suffix in held and (suffix != ".webm" or kind.has_alpha)]
    return [suffix for suffix in usual if codec is None or codec in held[suffix]] or usual


def check_rate(target: Path, codec: Codec, rate: Fraction) -> None:
    """Refuse a frame rate that the codec's encoder does not take.

    Raises:
        MediaError: With the limit.
    """
    if codec == "av1" and rate > _AV1_RATE:
        raise MediaError(
            f"{target}: the video has {float(rate):g} frames per second, and AV1 is written with at most {_AV1_RATE}; "
            "choose another --codec"
        )


def codec_for(target: Path, kind: OutputKind, options: VideoOptions) -> Codec:
    """The codec of a result.

    Raises:
        UsageError: The container is unknown, or does not hold what was asked; with what does.
    """
    suffix = target.suffix.lower()
    if suffix not in _CODECS:
        raise UsageError(
            f"{target}: video is written as {', '.join(VIDEO_OUTPUTS)} or as pictures (frames/%06d.png), "
            f"not {suffix or 'no suffix'}"
        )
    if kind.has_alpha and suffix not in _ALPHA_CODECS:
        advice = ".mov (ProRes 4444), .webm (VP9) or frames/%06d.png"
        raise UsageError(f"{target}: {suffix} video holds no transparency; write a cutout as {advice}")
    held = (_ALPHA_CODECS if kind.has_alpha else _CODECS)[suffix]
    codec = options.codec or held[0]
    if codec not in held:
        clear = " with transparency" if kind.has_alpha else ""
        raise UsageError(f"{target}: {suffix} is not written with {codec}{clear}; it takes {', '.join(held)}")
    if options.quality is not None and codec not in _CRF_OF_WORST:
        why = "keeps every bit" if codec == "ffv1" else "has one quality here"
        raise UsageError(f"--quality: {codec} {why}; leave it out")
    return codec


def choose_encoder(
    codec: Codec, suffix: str, kind: OutputKind, info: VideoStreamInfo, options: VideoOptions
) -> Encoder:
    """Choose the encoder. No B-frames: each packet's time is its frame's.

    Raises:
        BackendUnavailable: `--hwaccel cuda` was asked and NVENC cannot do it.
    """
    software = _software(codec, kind, info, options.quality)
    if suffix in (".mp4", ".mov") and codec == "hevc":
        software = replace(software, tag="hvc1")
    return _on_gpu(software, kind, info, options.hwaccel) or software


def _software(codec: Codec, kind: OutputKind, info: VideoStreamInfo, quality: int | None) -> Encoder:
    crf = ""
    if codec in _CRF_OF_WORST:  # 100 is the codec's best, 1 its worst
        worst = _CRF_OF_WORST[codec]
        crf = str(_USUAL_CRF[codec] if quality is None else round(worst * (100 - quality) / 99))
    if codec in ("prores", "ffv1"):
        pixels, options = _intra(codec, kind, odd=bool(info.width % 2))
    elif codec in ("vp9", "av1"):
        pixels, options = _of_the_web(codec, kind, crf)
    else:
        pixels, options = _h26x(codec, kind, crf, odd=bool(info.height % 2 or info.width % 2))
        if codec == "h264" and info.height * info.width > _LARGE_PIXELS:
            options["rc-lookahead"] = "4"  # each picture looked ahead at is held: at 3840x2160, 20 MB
    return Encoder(codec=codec, library=_LIBRARIES[codec], pixels=pixels, options=options)


def _intra(codec: Codec, kind: OutputKind, *, odd: bool) -> tuple[str, dict[str, str]]:
    if codec == "ffv1":
        pixels = "gray" if kind.name == "mask" else "bgra" if kind.has_alpha else "bgr0"
        return pixels, {"level": "3", "g": "1", "slicecrc": "1"}
    if kind.has_alpha:
        return "yuva444p10le", {"profile": "4444", "alpha_bits": "16"}
    if odd:  # FFmpeg leaves the last column of 4:2:2 chroma out where it begins a block of 16 pixels
        return "yuv444p10le", {"profile": "4444"}
    return "yuv422p10le", {"profile": "hq"}


def _of_the_web(codec: Codec, kind: OutputKind, crf: str) -> tuple[str, dict[str, str]]:
    if codec == "av1":
        # Not low delay (prediction structure 1): FFmpeg then waits for a packet after each frame, and SVT-AV1 4.1 now
        # and then gives none. Short groups and no looking ahead keep few pictures in memory.
        return "yuv420p", {
            "crf": crf,
            "preset": "10",
            "svtav1-params": "pred-struct=2:hierarchical-levels=2:lookahead=0",
        }
    speed = {"deadline": "realtime", "cpu-used": "7", "row-mt": "1", "auto-alt-ref": "0", "lag-in-frames": "0"}
    return ("yuva420p" if kind.has_alpha else "yuv420p"), {"crf": crf, "b": "0", **speed}


def _h26x(codec: Codec, kind: OutputKind, crf: str, *, odd: bool) -> tuple[str, dict[str, str]]:
    # 4:2:0 needs even sizes; without chroma any size goes.
    pixels = "yuv420p" if not odd else "gray" if kind.name == "mask" else "yuv444p"
    if codec == "hevc":
        return pixels, {"preset": "veryfast", "crf": crf, "x265-params": "bframes=0:log-level=none"}
    # On smooth masks ultrafast is not only the cheapest preset but also the one closest to them (at 1280x720: 3 ms,
    # mean error 0.3 of 255, largest 9).
    return pixels, {"preset": "ultrafast" if kind.name == "mask" else "veryfast", "crf": crf, "bf": "0"}


def _on_gpu(software: Encoder, kind: OutputKind, info: VideoStreamInfo, choice: HwAccel) -> Encoder | None:
    """The same codec in NVENC where it is there and can do this; None where software has to."""
    if choice == "none":
        return None
    fits = software.codec in _NVENC and software.pixels == "yuv420p" and not kind.has_alpha
    reason = f"NVENC does not write {software.codec} of this kind and size"
    if fits and min(info.height, info.width) >= _NVENC_SMALLEST:
        gpu = replace(
            software,
            library=_NVENC[software.codec],
            options={"preset": "p4", "rc": "vbr", "cq": software.options["crf"], "b": "0", "bf": "0"},
        )
        reason = _why_not(gpu, info)
        if not reason:
            return gpu
    if choice == "cuda":
        raise BackendUnavailable(f"--hwaccel cuda: {reason}; leave it out to encode in software")
    return None


def _why_not(encoder: Encoder, info: VideoStreamInfo) -> str:
    """Why this encoder cannot be opened here; empty when it can."""
    import av
    from av.error import FFmpegError

    try:
        context = av.CodecContext.create(encoder.library, "w")
        set_up(context, encoder, info)  # type: ignore[arg-type]
        open_encoder(context)  # type: ignore[arg-type]
    except (FFmpegError, ValueError, OSError) as error:
        return f"{encoder.library} cannot be opened ({getattr(error, 'strerror', None) or error})"
    return ""


def open_encoder(context: VideoCodecContext) -> None:
    """Open an encoder that was set up, and keep the process's scheduling as it is.

    Run as root, as in containers, SVT-AV1 puts its threads and the one that opens it under real-time scheduling, where
    they stop whatever else the machine does.
    """
    if not hasattr(os, "sched_getscheduler"):
        context.open()
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    before = _threads()
    try:
        context.open()
    finally:
        if os.sched_getscheduler(0) != policy:
            for thread in (_threads() - before) | {threading.get_native_id()}:
                with suppress(OSError):  # it has ended
                    os.sched_setscheduler(thread, policy, parameters)


def _threads() -> set[int]:
    """All threads of the process."""
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}


def set_up(context: VideoCodecContext, encoder: Encoder, info: VideoStreamInfo) -> None:
    """Tell an encoder the size, times and colors of a result."""
    context.width, context.height, context.pix_fmt = info.width, info.height, encoder.pixels
    context.time_base = info.time_base
    context.framerate = info.rate
    context.sample_aspect_ratio = info.pixel_aspect
    context.thread_count = _ENCODE_THREADS
    if encoder.codec == "h264":
        context.thread_type = "FRAME"  # else x264 cuts each picture into as many slices as threads, which costs bytes
    context.options = dict(encoder.options)
    os.environ.setdefault("SVT_LOG", "0")  # else it prints; the AV1 encoder has no other setting
    if encoder.tag:
        context.codec_tag = encoder.tag
    if encoder.codec == "ffv1":
        return  # RGB or gray, with nothing to describe
    context.color_range = FULL_RANGE if encoded_full_range(encoder, info) else LIMITED_RANGE
    color = encoded_color(info.color)
    context.colorspace, context.color_primaries, context.color_trc = color.matrix, color.primaries, color.transfer


def encoded_full_range(encoder: Encoder, info: VideoStreamInfo) -> bool:
    """Whether luma is full range: as in the source, and always for gray.

    Players take all gray for full range. ProRes has video range alone.
    """
    if encoder.codec == "ffv1" or encoder.pixels == "gray":
        return True
    return info.color.full_range and encoder.codec != "prores"


def encoded_color(color: Color) -> Color:
    """The source's color description; RGB has no matrix."""
    if color.matrix in _SWSCALE_MATRIX or color.matrix == _UNSPECIFIED:
        return color
    return replace(color, matrix=_SMPTE170M)


def swscale_matrix(color: Color) -> int:
    """The number by which swscale knows a matrix."""
    return _SWSCALE_MATRIX.get(encoded_color(color).matrix, 5)


def refused(encoder: Encoder, target: Path, info: VideoStreamInfo, detail: str) -> MediaError:
    """What to say when an encoder does not open."""
    return MediaError(
        f"{target}: {encoder.library} does not write {info.width}x{info.height} ({detail}); choose another --codec"
    )
