"""A job outlives its inputs: what one of them brings to light fails that one, and the others are done."""

import io

import cv2
import numpy as np
import pytest
import pyvips

from basnet_runtime.command import jobs, pipes, watch
from basnet_runtime.command import run as running
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.pipes import run_piped
from basnet_runtime.command.run import Summary, follow, run
from basnet_runtime.media.compose import large
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.image import pictures
from basnet_runtime.media.image.animation import AnimationSource
from basnet_runtime.media.image.pictures import PictureFile, write_picture
from basnet_torch import spec
from basnet_torch.errors import BackendUnavailable, BasnetError, MediaError, ModelFileError
from basnet_torch.unexpected import log_path

NAMES = ["a.png", "b.png", "c.png", "d.png"]


class Quiet:
    def started(self, what, total):
        pass

    def advanced(self):
        pass


@pytest.fixture
def folder(tmp_path, monkeypatch, make_model):
    """Four pictures, told apart by their brightness, and a model whose mask is just that."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(running, "opened_model", lambda _: make_model())
    for index, name in enumerate(NAMES):
        write_picture(tmp_path / "in" / name, np.full((40, 60, 3), 60 * index + 20, np.uint8))
    return tmp_path


def config(folder, **options):
    return RunConfig(inputs=(str(folder / "in"),), output=str(folder / "out"), **options)


def made(folder):
    return sorted(path.name for path in (folder / "out").glob("*.png"))


def fails_for(function, wanted, error):
    """The function, but with an error for some of its calls."""

    def wrapped(*args, **options):
        if wanted(*args):
            raise error
        return function(*args, **options)

    return wrapped


def named(name):
    return lambda this, *_: this.path.name == name


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), AssertionError(), RecursionError("deep")])
def test_reading(folder, monkeypatch, error):
    read = PictureFile.read
    monkeypatch.setattr(PictureFile, "read", fails_for(read, named("b.png"), error))
    summary = run(config(folder), Quiet())
    (failure,) = summary.failures
    assert failure.error.startswith(f"{folder}/in/b.png: unexpected: {type(error).__name__}")
    assert failure.error.endswith(f"; traceback in {log_path()}")
    assert "Traceback" in log_path().read_text()
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]

    monkeypatch.setattr(PictureFile, "read", read)  # the same command again does what is left
    again = run(config(folder), Quiet())
    assert not again.failures
    assert [result.source.name for result in again.results] == ["b.png"]


def test_naming(folder, monkeypatch):
    monkeypatch.setattr(jobs, "media_of", fails_for(jobs.media_of, lambda path: path.name == "b.png", OSError("odd")))
    summary = run(config(folder), Quiet())
    assert [failure.source.name for failure in summary.failures] == ["b.png"]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]


def test_checking_the_output(folder, monkeypatch):
    monkeypatch.setattr(
        running,
        "check_job",
        fails_for(running.check_job, lambda _, job: job.source.name == "b.png", KeyError("odd")),
    )
    summary = run(config(folder), Quiet())
    assert [failure.error.split(";")[0] for failure in summary.failures] == [
        f"{folder}/in/b.png: unexpected: KeyError: 'odd'"
    ]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]


@pytest.mark.parametrize("batch", [1, 3])
def test_composing(folder, monkeypatch, batch):
    whole = Composer.__call__
    monkeypatch.setattr(
        Composer, "__call__", fails_for(whole, lambda _, frame, *__: frame.index == 1, ValueError("odd"))
    )
    summary = run(config(folder, batch=batch), Quiet())
    assert [failure.source.name for failure in summary.failures] == ["b.png"]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]


def test_writing(folder, monkeypatch):
    whole = pictures.save_image
    monkeypatch.setattr(
        pictures, "save_image", fails_for(whole, lambda target, *_: target.name == "b.mask.png", TypeError("odd"))
    )
    summary = run(config(folder), Quiet())
    assert [failure.source.name for failure in summary.failures] == ["b.png"]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]
    assert not list((folder / "out").glob(".*partial*"))
    monkeypatch.setattr(pictures, "save_image", whole)
    again = run(config(folder), Quiet())
    assert [result.source.name for result in again.results] == ["b.png"]
    assert made(folder) == [name.replace(".png", ".mask.png") for name in NAMES]


@pytest.fixture
def network(monkeypatch, make_model):
    """Gives `network(infer)`: the model's network is that function of the batch and of what it would have given."""

    def replace(infer):
        model = make_model()
        whole = model.backend.infer
        monkeypatch.setattr(model.backend, "infer", lambda batch: infer(batch, whole(batch)))
        monkeypatch.setattr(running, "opened_model", lambda _: model)

    return replace


def bright(masks):
    """Whether the second picture, of brightness 80, is in the batch."""
    return bool((abs(masks.mean(axis=(1, 2, 3)) * 255 - 80) < 10).any())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError("odd"), BackendUnavailable("cannot run this batch")])
def test_a_picture_that_the_network_stumbles_over(folder, network, batch, error):
    def infer(_, masks):
        if bright(masks):
            raise error
        return masks

    network(infer)
    summary = run(config(folder, batch=batch), Quiet())
    assert [failure.source.name for failure in summary.failures] == ["b.png"]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]


def test_one_picture_whose_map_is_not_finite(folder, network):
    network(lambda _, masks: np.where(bright(masks), np.nan, masks))
    summary = run(config(folder), Quiet())
    assert ["not finite" in failure.error for failure in summary.failures] == [True]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]


@pytest.mark.parametrize(
    ("error", "ends_with", "told"),
    [
        (RuntimeError("CUDA error: the device is gone"), BackendUnavailable, "every picture fails: unexpected: Runti"),
        (BackendUnavailable("the device is gone"), BackendUnavailable, "^the device is gone"),
        (ModelFileError("no good"), ModelFileError, "^no good"),
    ],
)
def test_a_network_that_is_gone_ends_the_job_with_one_line(folder, network, error, ends_with, told):
    calls = []

    def infer(_, masks):
        calls.append(len(masks))
        if len(calls) > 1:
            raise error
        return masks

    network(infer)
    summary = Summary()
    with pytest.raises(ends_with, match=told):
        run(config(folder), Quiet(), summary)
    assert len(calls) == 3  # the first picture, the second, and the plain gray one
    assert made(folder) in (["a.mask.png"], [])
    assert not summary.failures


def test_a_composer_that_always_fails_ends_the_job(folder, monkeypatch):
    monkeypatch.setattr(Composer, "__call__", fails_for(Composer.__call__, lambda *_: True, ValueError("odd")))
    with pytest.raises(BasnetError, match="every picture fails: unexpected: ValueError: odd") as caught:
        run(config(folder), Quiet())
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_ends_the_job(folder, monkeypatch, error):
    monkeypatch.setattr(PictureFile, "read", fails_for(PictureFile.read, named("c.png"), error()))
    with pytest.raises(error):
        run(config(folder), Quiet())
    monkeypatch.undo()


def gif(path):
    frames = np.concatenate([np.full((20, 30, 3), value, np.uint8) for value in (0, 120, 240)])
    image = pyvips.Image.new_from_memory(frames.data, 30, 60, 3, "uchar").copy(interpretation="srgb").copy()
    image.set_type(pyvips.GValue.gint_type, "page-height", 20)
    image.write_to_file(str(path))


def test_an_animation(folder, monkeypatch):
    gif(folder / "in" / "e.gif")
    gif(folder / "in" / "f.gif")
    monkeypatch.setattr(AnimationSource, "frames", fails_for(AnimationSource.frames, named("e.gif"), KeyError("odd")))
    summary = run(config(folder), Quiet())
    assert [failure.error.split(";")[0] for failure in summary.failures] == [
        f"{folder}/in/e.gif: unexpected: KeyError: 'odd'"
    ]
    assert len(summary.results) == 5
    assert not (folder / "out" / "e.mask.gif").exists()


def test_a_network_that_is_gone_in_an_animation(folder, network):
    def infer(_, masks):
        raise RuntimeError("the device is gone")

    gif(folder / "e.gif")
    network(infer)
    with pytest.raises(BackendUnavailable, match="every picture fails"):
        run(RunConfig(inputs=(str(folder / "e.gif"),)), Quiet())


def test_a_large_picture(folder, monkeypatch):
    monkeypatch.setattr(spec, "_LARGE_PIXELS", 1000)
    monkeypatch.setattr(large, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(
        large, "run_large", fails_for(large.run_large, lambda picture, _: picture.path.name == "b.png", KeyError("odd"))
    )
    summary = run(config(folder), Quiet())
    assert [failure.source.name for failure in summary.failures] == ["b.png"]
    assert made(folder) == ["a.mask.png", "c.mask.png", "d.mask.png"]


def test_a_pipe(folder, monkeypatch):
    data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    target = io.BytesIO()
    told = "standard input: unexpected: KeyError: 'odd'; traceback in "
    with monkeypatch.context() as patch:
        patch.setattr(PictureFile, "read", fails_for(PictureFile.read, lambda *_: True, KeyError("odd")))
        summary = run_piped(RunConfig(inputs=("-",)), Quiet(), source=io.BytesIO(data), target=target)
    assert [failure.error.startswith(told) for failure in summary.failures] == [True]
    monkeypatch.setattr(pipes, "media_of", fails_for(pipes.media_of, lambda *_: True, KeyError("odd")))
    with pytest.raises(MediaError, match=told):
        run_piped(RunConfig(inputs=("-",)), Quiet(), source=io.BytesIO(data), target=target)
    assert target.getvalue() == b""


def test_a_folder_that_is_watched(folder, monkeypatch):
    monkeypatch.setattr(running, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(watch, "_LOOKS", 1)
    monkeypatch.setattr(PictureFile, "read", fails_for(PictureFile.read, named("b.png"), KeyError("odd")))
    (folder / "in" / "notes.txt").write_text("x")
    looks = []

    def on_look():
        looks.append(made(folder))
        if len(looks) == 1:
            (folder / "in" / "b.png").rename(folder / "in" / "e.png")
        if len(looks) == 2:
            raise KeyboardInterrupt

    summary = follow(config(folder), Quiet(), on_look=on_look)
    assert [failure.source.name for failure in summary.failures] == ["b.png"]
    assert summary.left_out == {".txt": 1}
    assert looks[0] == ["a.mask.png", "c.mask.png", "d.mask.png"]
    assert looks[1] == [*looks[0], "e.mask.png"]
