"""What every test may use: the real data folder, a model without a network, and small videos drawn on the spot."""

# ruff: noqa: E402 - the number of threads is read when the libraries load
from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

# The tests' networks are tiny: one thread runs them faster than many, and tests in parallel do not stall one another.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# What the program keeps for its next start, and its log of defects, must not outlive the tests.
for _name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
    os.environ[_name] = tempfile.mkdtemp(prefix="basnet-tests-")
    atexit.register(shutil.rmtree, os.environ[_name], ignore_errors=True)

from basnet_runtime.machine import cpu_features as processor
from tests.cpus import as_on, kernels_of

# All tests as on a CPU of this kind; libraries read what holds their kernels to it when they load.
if _kind := os.environ.get("BASNET_CPU"):
    os.environ.update(kernels_of(_kind))
    processor._CPUINFO = as_on(_kind, Path(os.environ["XDG_CACHE_HOME"]))

import numpy as np
import pytest
from numpy.typing import NDArray

from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.model import SaliencyModel
from basnet_torch.spec import Postprocess, Preprocess


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real test data, named by BASNET_DATA; skips where that is not set."""
    folder = os.environ.get("BASNET_DATA")
    if not folder:
        pytest.skip("BASNET_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture
def fake_model() -> SaliencyModel:
    """A model whose mask is the picture's brightness, at 64 x 64."""
    return make_fake_model()


@pytest.fixture
def make_model() -> Callable[..., SaliencyModel]:
    return make_fake_model


def make_fake_model(size: int = 64, **options: Any) -> SaliencyModel:
    preprocess = Preprocess(height=size, width=size)
    return SaliencyModel(FakeBackend(size, size, **options), preprocess, Postprocess(), "fake")


@pytest.fixture
def write_video() -> Callable[..., Path]:
    return draw_video


def draw_video(
    path: Path,
    images: list[NDArray[np.uint8]],
    *,
    pts: list[int] | None = None,
    time_base: Fraction = Fraction(1, 30000),
    audio: str | None = None,
    rotation: int = 0,
    pixel_aspect: Fraction = Fraction(1),
    colorspace: int = 2,
    color_range: int = 1,
    pixels: str = "yuv444p",
) -> Path:
    """Encode RGB frames with libx264 at the given times, with a tone as sound where `audio` names a codec."""
    import av

    options = {"video_track_timescale": str(time_base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "8", "bf": "0"})
        context = stream.codec_context
        context.height, context.width = images[0].shape[:2]
        context.pix_fmt, context.time_base, context.sample_aspect_ratio = pixels, time_base, pixel_aspect
        context.colorspace, context.color_range = colorspace, color_range
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=48000) if audio else None
        times = pts or [1001 * i for i in range(len(images))]
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(
                format=pixels, dst_colorspace=1 if colorspace == 1 else 5, dst_color_range=color_range
            )
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _tone(container, sound, seconds=float(times[-1] * time_base) + 0.2)
    return path


def _tone(container: Any, stream: Any, seconds: float) -> None:
    import av

    rate, size = 48000, 960
    for start in range(0, int(seconds * rate), size):
        wave = np.sin(np.arange(start, start + size) * (2 * np.pi * 440 / rate)).astype(np.float32) * 0.5
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.pts, frame.rate, frame.time_base = start, rate, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Let the program find a CPU of that kind, see `tests.cpus`; kernels stay this one's."""

    def found(kind: str) -> None:
        monkeypatch.setattr(processor, "_CPUINFO", as_on(kind, tmp_path_factory.mktemp("cpu")))

    return found
