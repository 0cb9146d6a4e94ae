"""Open video files and network streams, with timeouts.

    with open_input("rtsp://10.0.0.7/front") as container: ...

A camera has no container here: `media/camera.py` reads it.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from basnet_runtime.kinds import HwAccel
from basnet_torch.errors import BackendUnavailable, MediaError

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer

__all__ = ["av_detail", "camera_of", "hardware_decoding", "is_address", "is_live", "open_input"]

_LIVE = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp")
_ADDRESS = re.compile(rf"^({'|'.join(_LIVE)}|https?)://", re.IGNORECASE)
_CAMERA = re.compile(r"^camera:(\d{1,3})$|^/dev/video(\d{1,3})$")
_OPEN_SECONDS = 15.0
_READ_SECONDS = 10.0
_NETWORK_OPTIONS = {"rtsp_transport": "tcp"}  # over UDP, routers and full buffers lose packets without a word


def is_address(source: Path | str) -> bool:
    """Whether this names a network stream.

    >>> is_address("rtsp://10.0.0.7/front"), is_address("http:odd name.mp4")
    (True, False)
    """
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def is_live(source: Path | str) -> bool:
    """Whether frames come at their own pace and are lost when nobody takes them."""
    return isinstance(source, str) and source.lower().startswith(tuple(f"{scheme}://" for scheme in _LIVE))


def camera_of(source: Path | str) -> int | None:
    """The number of a camera named `camera:N` or `/dev/videoN`, or None.

    >>> camera_of("camera:0"), camera_of("/dev/video12"), camera_of("camera.mp4")
    (0, 12, None)
    """
    found = _CAMERA.match(str(source))
    return int(found[1] or found[2]) if found else None


def open_input(
    source: Path | str,
    *,
    hwaccel: HWAccel | None = None,
    timeouts: tuple[float, float] = (_OPEN_SECONDS, _READ_SECONDS),
) -> InputContainer:
    """Open a media file or network stream for reading.

    Args:
        source: A path, or an address (see `is_address`).
        hwaccel: Hardware that decodes.
        timeouts: Seconds that opening and each read of a network stream may take.

    Raises:
        MediaError: It cannot be opened, does not answer in time, or is no media.
    """
    import av
    from av.error import FFmpegError

    options = _NETWORK_OPTIONS if str(source).lower().startswith("rtsp") else {}
    begun = time.monotonic()
    try:
        if is_address(source):
            return av.open(str(source), metadata_errors="replace", options=options, timeout=timeouts, hwaccel=hwaccel)
        # The protocol is named, or FFmpeg takes "http:x" or "concat:x" in a name for one.
        return av.open(f"file:{source}", metadata_errors="replace", hwaccel=hwaccel)
    except (FFmpegError, OSError, ValueError) as error:
        late = is_address(source) and time.monotonic() - begun > 0.9 * timeouts[0]
        detail = f"there is no answer for {timeouts[0]:.0f} seconds" if late else av_detail(error)
        raise MediaError(f"{source}: cannot be read as video: {detail}") from error


def av_detail(error: Exception) -> str:
    """What FFmpeg says about an error, in lower case, without numbers and file names."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "immediate exit" in text.lower():
        return f"nothing came for {_READ_SECONDS:.0f} seconds"
    return text[:1].lower() + text[1:]


def hardware_decoding(choice: HwAccel) -> HWAccel | None:
    """NVDEC as PyAV takes it; None where software decodes.

    Raises:
        BackendUnavailable: `cuda` was asked and no CUDA device can be opened.
    """
    if choice == "none":
        return None
    import av
    from av.codec.hwaccel import HWAccel
    from av.error import FFmpegError

    accel = HWAccel("cuda", allow_software_fallback=choice == "auto")
    try:
        accel.create(av.Codec("h264", "r"))  # type: ignore[no-untyped-call, unused-ignore]
    except (FFmpegError, OSError, NotImplementedError, RuntimeError) as error:
        if choice == "cuda":
            raise BackendUnavailable(
                f"--hwaccel cuda: no CUDA device can be opened ({av_detail(error)}); "
                "leave it out to decode and encode in software"
            ) from error
        return None
    return accel
