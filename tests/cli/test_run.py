"""`basnet-run` as a user types it, over a model without a network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import av
import numpy as np
import pytest
import pyvips
from typer.testing import CliRunner

from basnet_runtime.command.cli import app
from basnet_runtime.command.journal import JOURNAL_NAME
from basnet_runtime.media.image.pictures import read_picture, write_picture
from basnet_runtime.model import SaliencyModel
from basnet_torch.console import say
from basnet_torch.device import CPU, Device
from basnet_torch.errors import BackendUnavailable, exit_on_error
from basnet_torch.unexpected import log_path
from tests.processes import HEARS_CTRL_C

RUNNER = CliRunner()
HEAVY = ("torch", "onnxruntime", "openvino", "tensorrt", "av", "pyvips", "cv2")


@pytest.fixture
def opened(monkeypatch, make_model):
    """What `open_model` was asked for; it gives the model without a network."""
    calls = []

    def open_model(path, **options):
        calls.append({"path": path, **options})
        return make_model()

    module = types.ModuleType("basnet_runtime.open")
    module.open_model = open_model
    monkeypatch.setitem(sys.modules, "basnet_runtime.open", module)
    return calls


@pytest.fixture
def folder(tmp_path, opened, monkeypatch):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = 240
    write_picture(tmp_path / "photo.jpg", image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args):
    return RUNNER.invoke(app, [str(arg) for arg in args])


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_picture_needs_no_option(folder):
    answer = call("photo.jpg")
    assert answer.exit_code == 0
    assert names(folder) == ["photo.jpg", "photo.mask.png"]
    mask = read_picture(folder / "photo.mask.png").image_HWC[..., 0]
    assert mask.shape == (40, 60)
    assert mask[20, 30] > 200
    assert mask[0, 0] < 20
    assert answer.stdout == ""
    assert "photo.jpg -> photo.mask.png" in answer.stderr
    assert "frames per second" in answer.stderr
    assert "network" in answer.stderr


def test_a_video_needs_no_option(folder, write_video):
    write_video(folder / "clip.mp4", [np.full((32, 48, 3), 200, np.uint8)] * 5, audio="aac")
    answer = call("clip.mp4")
    assert answer.exit_code == 0, answer.stderr
    assert names(folder) == ["clip.mask.mp4", "clip.mp4", "photo.jpg"]


def test_json_is_all_of_stdout(folder):
    answer = call("photo.jpg", "--json", "--kind", "cutout", "-o", "out")
    found = json.loads(answer.stdout)
    assert found["frames"] == 1
    (result,) = found["results"]
    assert 0.5 < result.pop("score") <= 1
    assert result == {
        "source": "photo.jpg",
        "target": "out/photo.cutout.png",
        "frames": 1,
        "salient": True,
        "notes": [],
    }
    assert set(found["seconds_by_stage"]) == {
        "decode",
        "preprocess",
        "network",
        "postprocess",
        "compose",
        "encode",
        "other",
    }
    assert found["runs_on"] == "fake backend"


DIM, BRIGHT = np.full((32, 48, 3), 20, np.uint8), np.full((32, 48, 3), 200, np.uint8)  # weak below 0.1


def mask_of(path):
    return read_picture(path).image_HWC


@pytest.mark.parametrize("emptied", [False, True])
def test_a_weak_mask_is_kept_and_said_and_emptied_on_request(folder, emptied):
    write_picture(folder / "dim.png", DIM)
    options = ["--empty-weak"] if emptied else []
    answer = call("dim.png", "photo.jpg", "-o", "out", "--json", *options)
    assert answer.exit_code == 0, answer.stderr
    dim, photo = json.loads(answer.stdout)["results"]
    assert (dim["salient"], photo["salient"]) == (False, True)
    assert dim["score"] == pytest.approx(20 / 255, abs=0.002) != photo["score"]
    said = "salient: false (score 0.078); its mask is " + ("empty" if emptied else "kept, --empty-weak empties it")
    assert (dim["notes"], photo["notes"]) == ([said], [])
    assert f"note: dim.png: {said}" in answer.stderr
    expected = np.full(DIM.shape, 0 if emptied else 20)
    np.testing.assert_allclose(mask_of(folder / "out" / "dim.mask.png"), expected, atol=1)


@pytest.mark.parametrize(("count", "overlaps"), [(1, False), (2, True)])
def test_only_several_pictures_overlap(folder, monkeypatch, count, overlaps):
    asked = []
    submit = SaliencyModel.submit

    def spy(self, prepared, *, overlap=True):
        asked.append(overlap)
        return submit(self, prepared, overlap=overlap)

    monkeypatch.setattr(SaliencyModel, "submit", spy)
    write_picture(folder / "second.png", BRIGHT)
    assert call(*["photo.jpg", "second.png"][:count], "-o", "out").exit_code == 0
    assert asked == [overlaps] * count


def test_the_old_option_is_gone(folder):
    answer = call("photo.jpg", "--keep-weak")
    assert (answer.exit_code, names(folder)) == (2, ["photo.jpg"])
    assert "No such option: --keep-weak" in answer.stderr


@pytest.mark.parametrize("emptied", [False, True])
def test_a_weak_large_picture(folder, monkeypatch, emptied):
    from basnet_runtime.media.compose import large
    from basnet_torch import spec

    monkeypatch.setattr(large, "LARGE_PIXELS", 1000)
    monkeypatch.setattr(spec, "_LARGE_PIXELS", 1000)
    write_picture(folder / "dim.png", DIM)
    answer = call("dim.png", "--json", *(["--empty-weak"] if emptied else []))
    (result,) = json.loads(answer.stdout)["results"]
    assert not result["salient"]
    assert result["score"] == pytest.approx(20 / 255, abs=0.002)
    np.testing.assert_allclose(mask_of(folder / "dim.mask.png"), 0 if emptied else 20, atol=1)


@pytest.mark.parametrize("options", [[], ["--resume"]])
@pytest.mark.parametrize("emptied", [False, True])
def test_weak_frames_of_a_video_are_counted(folder, write_video, options, emptied):
    write_video(folder / "clip.mp4", [DIM] * 3 + [BRIGHT] * 2 + [DIM])
    answer = call(
        "clip.mp4", "-o", "m.mkv", "--codec", "ffv1", "--json", *options, *(["--empty-weak"] if emptied else [])
    )
    (result,) = json.loads(answer.stdout)["results"]
    assert (result["salient"], result["weak_frames"], result["weak_spans"]) == (True, 4, [[0, 2], [5, 5]])
    assert len(result["frame_scores"]) == result["frames"] == 6
    assert result["score"] == max(result["frame_scores"])
    assert "note: clip.mp4: salient: false in 4 of 6 frames (highest score of all 0.78" in answer.stderr
    with av.open(str(folder / "m.mkv")) as made:
        means = [frame.to_ndarray(format="gray").mean() for frame in made.decode(video=0)]
    low = 0 if emptied else 20
    np.testing.assert_allclose(means, [low, low, low, 200, 200, low], atol=3)


def test_weak_frames_of_an_animation_are_counted(folder):
    frames = np.concatenate([DIM, BRIGHT, DIM + 1])
    image = pyvips.Image.new_from_array(frames)
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "page-height", DIM.shape[0])
    image.set_type(pyvips.GValue.array_int_type, "delay", [100, 100, 100])
    image.write_to_file("dim.webp", lossless=True)
    for options, low in (([], 20), (["--empty-weak"], 0)):
        answer = call("dim.webp", "-o", "out.webp", "--overwrite", "--json", *options)
        (result,) = json.loads(answer.stdout)["results"]
        assert (result["salient"], result["weak_frames"], result["weak_spans"]) == (True, 2, [[0, 0], [2, 2]])
        made = np.asarray(pyvips.Image.new_from_file("out.webp", n=-1).extract_band(0).numpy())
        means = made.reshape(3, -1).mean(axis=1)
        np.testing.assert_allclose(means, [low, 200, low], atol=2)


def test_bad_inputs_are_named_and_the_others_done(folder, write_video):
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "bad.mp4").write_text("hello")
    write_video(folder / "clip.mp4", [np.full((32, 48, 3), 200, np.uint8)] * 2)
    answer = call(folder, "missing.jpg")
    assert answer.exit_code == 1
    assert {"photo.mask.png", "clip.mask.mp4"} <= set(names(folder))
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for name in ("zero.png", "text.jpg", "bad.mp4", "missing.jpg"):
        assert sum(name in line for line in errors) == 1
    assert "4 of 6 inputs failed" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_existing_outputs_are_kept(folder, opened):
    assert call("photo.jpg").exit_code == 0
    before = (folder / "photo.mask.png").stat().st_mtime_ns
    answer = call("photo.jpg")
    assert answer.exit_code == 2
    assert "already there: photo.mask.png; --overwrite replaces" in answer.stderr
    assert (folder / "photo.mask.png").stat().st_mtime_ns == before
    assert len(opened) == 1  # refused before the model was opened
    assert call("photo.jpg", "--overwrite").exit_code == 0
    assert call("photo.jpg", "--skip-existing").exit_code == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["photo.jpg", "--kind", "shadow"], "it must be mask, cutout"),
        (["photo.jpg", "-o", "a.xyz"], "not .xyz"),
        (["photo.jpg", "--kind", "cutout", "-o", "a.jpg"], "holds no transparency"),
        (["photo.jpg", "--batch", "0"], "--batch"),
        (["photo.jpg", "--no-such-option"], "No such option"),
        ([], "Missing argument"),
    ],
)
def test_usage_errors(folder, args, told):
    answer = call(*args)
    assert answer.exit_code == 2
    assert told in answer.stderr
    assert names(folder) == ["photo.jpg"]


def test_max_pixels(folder):
    answer = call("photo.jpg", "--max-pixels", 100)
    assert answer.exit_code == 1
    assert "(--max-pixels)" in answer.stderr


def test_options_reach_the_model(folder, opened):
    call("photo.jpg", "--engine", "m.onnx", "--backend", "openvino", "--threads", 3, "--precision", "bf16")
    call("photo.jpg", "--model", "m.pth", "--device", "cuda:1", "--overwrite")
    ours, gpu = {"cuda": "cuda-core"}, Device("cuda", 1)
    assert opened == [
        {
            "path": Path("m.onnx"),
            "backend": "openvino",
            "device": CPU,
            "threads": 3,
            "precision": "bf16",
            **ours,
        },
        {
            "path": Path("m.pth"),
            "backend": None,
            "device": gpu,
            "threads": None,
            "precision": None,
            **ours,
        },
    ]


def test_a_missing_backend_ends_with_3(folder, monkeypatch):
    def refuse(*_, **__):
        raise BackendUnavailable("onnxruntime is not installed; pip install 'basnet-deploy[cpu]'")

    monkeypatch.setattr(sys.modules["basnet_runtime.open"], "open_model", refuse)
    answer = call("photo.jpg")
    assert answer.exit_code == 3
    assert answer.stderr == "error: onnxruntime is not installed; pip install 'basnet-deploy[cpu]'\n"


def test_a_defect_is_one_line_and_its_traceback_is_in_the_log(folder, monkeypatch, make_model):
    monkeypatch.setattr(sys.modules["basnet_runtime.open"], "open_model", lambda *_, **__: make_model(fail_at=0))
    answer = call("photo.jpg")
    assert answer.exit_code == 3
    (line,) = answer.stderr.splitlines()
    told = "error: fake, fake backend: every picture fails: unexpected: RuntimeError: fake failure at picture 0"
    assert line == f"{told}; traceback in {log_path()}"
    assert "Traceback" in log_path().read_text()
    assert names(folder) == ["photo.jpg"]


def test_an_interrupted_run_tells_what_was_done(folder, monkeypatch, make_model):
    write_picture(folder / "second.png", np.zeros((40, 60, 3), np.uint8))
    model = make_model()
    whole = model.backend.infer

    def interrupted(batch):
        if model.backend.pictures:
            deadline = time.monotonic() + 30
            while not (folder / "photo.mask.png").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt
        return whole(batch)

    monkeypatch.setattr(model.backend, "infer", interrupted)
    monkeypatch.setattr(sys.modules["basnet_runtime.open"], "open_model", lambda *_, **__: model)
    answer = call("photo.jpg", "second.png")
    assert answer.exit_code == 130
    told = answer.stderr.splitlines()
    assert told == ["photo.jpg -> photo.mask.png", "interrupted after 1 finished outputs", "interrupted"]
    assert names(folder) == ["photo.jpg", "photo.mask.png", "second.png"]


def test_quiet(folder):
    assert call("photo.jpg", "--quiet").stderr == ""


@pytest.mark.parametrize("module", ["basnet_runtime.command.cli", "basnet_runtime.doctor"])
def test_help_loads_nothing_heavy(module):
    code = f"""
import sys
import {module} as m
try:
    m.app(["--help"])
except SystemExit as end:
    assert not end.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


_SLOW = """
import pathlib, sys, time, types
from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.model import SaliencyModel
from basnet_torch.spec import Postprocess, Preprocess
class Slow(FakeBackend):
    def infer(self, batch):
        time.sleep(0.02)
        if self.pictures >= 40:
            pathlib.Path("reached").touch()
            time.sleep(0.5 if pathlib.Path("stalls").exists() else 0)  # so that nobody has to be quick to stop it
        return super().infer(batch)
module = types.ModuleType("basnet_runtime.open")
module.open_model = lambda *_, **__: SaliencyModel(Slow(), Preprocess(height=32, width=32), Postprocess(), "slow")
sys.modules["basnet_runtime.open"] = module
from basnet_runtime.command.cli import main
main()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_a_file_that_plays(tmp_path, write_video, end):
    write_video(tmp_path / "clip.mp4", [np.full((32, 48, 3), i % 256, np.uint8) for i in range(600)])
    command = [*HEARS_CTRL_C, sys.executable, "-c", _SLOW, "clip.mp4", "-o", "out/"]
    (tmp_path / "stalls").touch()
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "reached").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, end)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.endswith("interrupted\n")
    (kept,) = (tmp_path / "out").iterdir()
    assert kept.name == "clip.mask.partial.mp4"
    with av.open(str(kept)) as container:
        assert 0 < sum(1 for _ in container.decode(video=0)) < 600


@pytest.mark.shared
def test_odd_folder(tmp_path, data_root, opened):
    links = tmp_path / "in"
    links.mkdir()
    for path in (data_root / "odd").iterdir():
        (links / f"{path.suffix[1:]}_{path.name}").symlink_to(path)
    answer = call(links, "-o", tmp_path / "out", "--batch", 4, "--quiet")
    assert answer.exit_code == 1
    assert len([path for path in (tmp_path / "out").iterdir() if path.name != JOURNAL_NAME]) == 90
    assert sum(line.startswith("error: ") for line in answer.stderr.splitlines()) == 12


@pytest.mark.parametrize("output", [(), ("-o", "out/")])
@pytest.mark.parametrize(
    "name",
    [
        "two words  and more.png",
        "Überraschung 写真 📷.png",
        "-dash [1] %s {x}.png",
        "line\nbreak.png",
        os.fsdecode(b"latin-\xe9\xff.png"),
        f"{'é' * 125}.png",
    ],
)
def test_names(folder, name, output):
    source = folder / "in" / name
    source.parent.mkdir()
    source.write_bytes((folder / "photo.jpg").read_bytes())
    answer = call("in", "--json", *output)
    assert answer.exit_code == 0, answer.stderr
    (result,) = json.loads(answer.stdout)["results"]
    assert result["source"] == f"in/{name}"
    assert read_picture(Path(result["target"])).image_HWC.shape == (40, 60, 3)
    assert len(os.fsencode(Path(result["target"]).name)) <= 255
    again = call("in", *output)
    assert (again.exit_code, "1 of 1 were done by an earlier run" in again.stderr) == (0, True)


def test_a_deep_tree(folder):
    deep = folder.joinpath("in", *["a folder with a rather long name of about fifty"] * 30)
    deep.mkdir(parents=True)
    (deep / "photo.jpg").write_bytes((folder / "photo.jpg").read_bytes())
    answer = call("in", "-o", "out", "--recursive")
    assert answer.exit_code == 0, answer.stderr
    assert [path.name for path in (folder / "out").rglob("*.png")] == ["photo.mask.png"]


@pytest.mark.parametrize(("name", "suffix"), [("png", ".png"), ("jpg", ".jpg"), ("webp", ".webp"), ("tiff", ".tiff")])
def test_formats(folder, name, suffix):
    assert call("photo.jpg", "--format", name, "-o", "out/", "--kind", "overlay").exit_code == 0
    assert read_picture(folder / "out" / f"photo.overlay{suffix}").image_HWC.shape == (40, 60, 3)


def test_a_cutout_as_jpeg_is_refused_with_advice(folder):
    answer = call("photo.jpg", "--format", "jpg", "--kind", "cutout")
    assert answer.exit_code == 2
    assert "holds no transparency; use .png" in answer.stderr
    assert "--kind color:#ffffff" in answer.stderr
    assert names(folder) == ["photo.jpg"]


def test_resume_goes_on_after_a_kill(tmp_path, write_video):
    clips = tmp_path / "in"
    clips.mkdir()
    for name in ("a", "b"):
        write_video(clips / f"{name}.mp4", [np.full((32, 48, 3), i, np.uint8) for i in range(60)])
    short = _SLOW.replace(
        "main()\n", "from basnet_runtime.media.video.write import segments as v\nv.SEGMENT_FRAMES = 10\nmain()"
    )
    command = [sys.executable, "-c", short, "in", "-o", "out", "--resume", "--json"]
    (tmp_path / "stalls").touch()
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = tmp_path / "out" / "a.mask.mp4.segments" / "000001.segment"
    deadline = time.monotonic() + 60
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    (tmp_path / "stalls").unlink()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".basnet-run.jsonl", "a.mask.mp4.segments"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)["results"]
    assert [result["frames"] for result in results] == [60, 60]
    assert any("frames of an earlier run" in note for note in results[0]["notes"])
    names = [".basnet-run.jsonl", "a.mask.mp4", "b.mask.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    # Killed between the last renaming and the removal of the segments, the result is whole all the same.
    (tmp_path / "out" / "b.mask.mp4.segments").mkdir()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["results"] == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_large_pictures_go_their_own_way(folder, monkeypatch):
    from basnet_runtime.media.compose import large
    from basnet_torch import spec

    monkeypatch.setattr(large, "LARGE_PIXELS", 2000)
    monkeypatch.setattr(spec, "_LARGE_PIXELS", 2000)
    small = np.zeros((30, 40, 3), np.uint8)
    write_picture(folder / "small.png", small + 200)
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:-60])
    answer = call("photo.jpg", "small.png", "cut.jpg", "-o", "out", "--json", "--kind", "cutout")
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert {item["source"]: item["salient"] for item in found["results"]} == {"photo.jpg": True, "small.png": True}
    assert found["frames"] == 2
    assert [failure["error"] for failure in found["failures"]] == [
        "cut.jpg: cannot be read: the file is cut short or damaged"
    ]
    assert read_picture(folder / "out" / "photo.cutout.png").alpha_HW is not None
    assert names(folder / "out") == [".basnet-run.jsonl", "photo.cutout.png", "small.cutout.png"]


def test_what_the_system_refuses_is_one_line(folder):
    answer = call("x" * 300)
    assert answer.exit_code == 1
    assert answer.stderr == f"error: {'x' * 300}: File name too long\n"


def test_another_background_in_the_same_file_is_another_job(folder):
    (folder / "in").mkdir()
    (folder / "photo.jpg").rename(folder / "in" / "photo.jpg")
    command = ("in", "-o", "out", "--kind", "image:ground.png")
    write_picture(folder / "ground.png", np.full((40, 60, 3), 10, np.uint8))
    assert call(*command).exit_code == 0
    assert call(*command).exit_code == 0  # done already
    write_picture(folder / "ground.png", np.full((40, 60, 3), 200, np.uint8), overwrite=True)
    answer = call(*command)
    assert answer.exit_code == 2
    assert "already there: out/photo.image.png" in answer.stderr


def test_lines_go_nowhere_where_stderr_is_closed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    say("a line")
    with pytest.raises(SystemExit), exit_on_error():
        raise BackendUnavailable("none")
    assert capsys.readouterr().out == ""


def test_outputs_that_contradict_themselves_are_one_line(folder):
    (folder / "plain").write_text("a file")
    for options, told in (
        (("-o", "plain"), "--output plain is a file and no folder; name a folder, a file with a suffix, or '-'"),
        (("-o", "/dev/null"), "--output /dev/null is a file and no folder;"),
        (("-o", "a.png", "--format", "jpg"), "a.png: is no jpg; leave --format out, or name it so"),
    ):
        answer = call("photo.jpg", *options)
        assert answer.exit_code == 2
        assert answer.stderr.startswith(f"error: {told}")
    assert (folder / "plain").read_text() == "a file"
    assert call("photo.jpg", "-o", "a.jpeg", "--format", "jpg").exit_code == 0


def test_a_plain_run_starts_no_idle_threads():
    code = (
        "import os\n"
        "from basnet_runtime.command.cli import _import_arrays\n"
        "_import_arrays()\n"
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    free = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=free)
    assert answer.stdout.split() == ["1", "None"]
