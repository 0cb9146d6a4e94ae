"""`-`: bytes in, bytes out, the pipe called by its name, and nothing else on standard output."""

import io
import subprocess
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from basnet_runtime.command import run as run_module
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.pipes import is_piped, run_piped
from basnet_runtime.command.run import Summary
from basnet_runtime.kinds import OutputKind
from basnet_torch.errors import MediaError, UsageError


class Silent:
    def started(self, what, total):
        pass

    def advanced(self):
        pass


@pytest.fixture
def piped(monkeypatch, make_model):
    """Run bytes through a model whose mask is the picture's brightness."""
    monkeypatch.setattr(run_module, "opened_model", lambda _: make_model())

    def call(data=b"", **options):
        target = io.BytesIO()
        config = RunConfig(**{"inputs": ("-",), **options})
        assert is_piped(config)
        return run_piped(config, Silent(), source=io.BytesIO(data), target=target), target.getvalue()

    return call


def png(height=40, width=60):
    image = np.zeros((height, width, 3), np.uint8)
    image[10:30, 20:40] = 255
    return cv2.imencode(".png", image)[1].tobytes()


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_picture_in_mask_out(piped):
    summary, data = piped(png())
    mask = decoded(data)
    assert mask.shape == (40, 60)
    assert mask[15:25, 25:35].min() > 200
    assert mask[:5].max() < 50
    (result,) = summary.results
    assert (str(result.source), str(result.target)) == ("-", "-")


def test_picture_in_cutout_out_to_a_file(piped, tmp_path):
    _, data = piped(png(), output=str(tmp_path / "a.png"), kind=OutputKind.parse("cutout"))
    assert data == b""
    assert decoded((tmp_path / "a.png").read_bytes()).shape == (40, 60, 4)


def test_file_in_pipe_out(piped, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    summary, data = piped(inputs=(str(tmp_path / "a.png"),), output="-")
    assert decoded(data).shape == (40, 60)
    assert summary.results[0].source == tmp_path / "a.png"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("form", "codec"), [("mp3", "mp3"), ("ipod", "aac"), ("wav", "pcm_s16le"), ("matroska", "flac")]
)
@pytest.mark.parametrize("output", ["-", "a.png"])
def test_sound_alone_is_called_so(piped, tmp_path, form, codec, output):
    import av

    sound = io.BytesIO()
    with av.open(sound, "w", format=form) as container:
        stream = container.add_stream(codec, rate=48000)
        for start in range(0, 48000, 1152):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
            frame.rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    told = "standard input: has no video stream, only sound"
    if output == "-":
        with pytest.raises(MediaError, match=f"^{told}$"):
            piped(sound.getvalue())
    else:
        summary, _ = piped(sound.getvalue(), output=str(tmp_path / output))
        assert [failure.error for failure in summary.failures] == [told]


def test_video_in_video_out(piped, tmp_path, write_video):
    import av

    images = [np.full((32, 48, 3), 40 * i, np.uint8) for i in range(4)]
    data = write_video(tmp_path / "a.mp4", images).read_bytes()
    summary, out = piped(data)
    assert summary.frames == 4
    with av.open(io.BytesIO(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


@pytest.mark.parametrize("data", [b"", b"no picture at all"])
def test_garbage_is_one_line_and_no_bytes(piped, data):
    summary, out = piped(data)
    assert out == b""
    (failure,) = summary.failures
    assert failure.error.startswith("standard input: ")
    assert "/" not in failure.error


def test_one_at_a_time(piped):
    with pytest.raises(UsageError, match="stands for one input"):
        piped(inputs=("-", "b.jpg"))


@pytest.mark.parametrize("name", ["nosuch.jpg", "*.jpg", "."])
def test_only_a_file_goes_to_a_pipe(piped, name):
    with pytest.raises(UsageError, match="is not one file"):
        piped(inputs=(name,), output="-")


def test_a_full_or_broken_output_is_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    code = "from basnet_runtime.command.cli import main; main()"
    command = [sys.executable, "-c", code, str(tmp_path / "a.png"), "-o", "-", "--threads", "1"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        answer = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == b"error: standard output: cannot be written: no space left on device"


def test_a_terminal_is_not_fed_bytes(monkeypatch):
    terminal = io.BytesIO()
    terminal.isatty = lambda: True
    with pytest.raises(UsageError, match="written to the terminal"):
        run_piped(RunConfig(inputs=("-",)), Silent(), source=io.BytesIO(), target=terminal)


def test_command_keeps_standard_output_clean():
    command = [sys.executable, "-c", "from basnet_runtime.command.cli import main; main()", "-", "--threads", "1"]
    answer = subprocess.run(command, input=png(), capture_output=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert decoded(answer.stdout).shape == (40, 60)
    assert b"1 frames" in answer.stderr
    both = subprocess.run([*command, "--json"], input=png(), capture_output=True, check=False)
    assert (both.returncode, both.stdout) == (2, b"")
    assert b"give -o FILE" in both.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 0.0}, "above 0"), ({"threshold": 1.5}, "at most 1"), ({"feather": -1.0}, "0 to 100")],
)
def test_edges_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        RunConfig(inputs=("a.jpg",), **options)


def test_hard_and_soft_edges(piped):
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    data = cv2.imencode(".png", np.dstack([ramp] * 3))[1].tobytes()
    hard = decoded(piped(data, threshold=0.5)[1])
    assert set(np.unique(hard)) == {0, 255}
    assert abs(int((hard > 0).sum()) - hard.size // 2) < hard.size // 20
    soft = decoded(piped(data, threshold=0.5, feather=3.0)[1])
    assert len(np.unique(soft)) > 10
    assert abs(float(soft.mean()) - float(hard.mean())) < 3


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
def test_an_animation_stays_one(piped, suffix):
    animation = cv2.Animation()
    animation.frames = [np.roll(decoded(png()), 4 * i, axis=1) for i in range(4)]
    animation.durations = [50, 100, 70, 200]
    data = np.asarray(cv2.imencodeanimation(suffix, animation)[1]).tobytes()
    summary, out = piped(data)
    assert summary.frames == 4
    read, again = cv2.imdecodeanimation(np.frombuffer(out, np.uint8).reshape(1, -1))
    assert read
    assert list(again.durations) == [50, 100, 70, 200]


def test_format_of_the_pipe(piped):
    assert piped(png(), picture_format="webp")[1][8:12] == b"WEBP"


def test_ctrl_c_says_that_the_pipe_got_nothing(tmp_path, write_video, fake_model, monkeypatch):
    monkeypatch.setattr(run_module, "opened_model", lambda _: fake_model)
    clip = write_video(tmp_path / "a.mp4", [np.full((48, 64, 3), i, np.uint8) for i in range(60)])

    class Impatient(Silent):
        def advanced(self):
            raise KeyboardInterrupt

    summary, target = Summary(), io.BytesIO()
    with pytest.raises(KeyboardInterrupt):
        run_piped(RunConfig(inputs=(str(clip),), output="-"), Impatient(), summary, target=target)
    assert target.getvalue() == b""
    assert summary.results == []
    assert summary.notes == ["interrupted before the result was whole: standard output got nothing"]
