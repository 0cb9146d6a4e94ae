"""What a run leaves as it found it."""

import cv2
import numpy as np
import pytest

from basnet_runtime.command import run as running
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run import Summary, run
from basnet_runtime.media.image.pictures import write_picture
from basnet_torch.device import Device
from basnet_torch.errors import UsageError


class Quiet:
    def started(self, what, total):
        pass

    def advanced(self):
        pass


@pytest.fixture
def threads():
    """Sets and restores OpenCV's number of threads."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    yield cv2.getNumThreads
    cv2.setNumThreads(before)


@pytest.mark.parametrize(("device", "during"), [("cpu", 1), ("cuda:1", 3)])
@pytest.mark.parametrize("fails", [False, True])
def test_opencv_gives_way_on_the_cpu_and_gets_its_threads_back(
    tmp_path, make_model, monkeypatch, threads, device, during, fails
):
    write_picture(tmp_path / "a.png", np.full((8, 8, 3), 9, np.uint8))
    model, seen = make_model(), []
    whole = model.backend.infer

    def infer(batch):
        seen.append(threads())
        if fails:
            raise UsageError("fails")
        return whole(batch)

    monkeypatch.setattr(model.backend, "infer", infer)
    monkeypatch.setattr(running, "opened_model", lambda _: model)
    config = RunConfig(inputs=(str(tmp_path / "a.png"),), device=Device.parse(device))
    if fails:
        with pytest.raises(UsageError, match="fails"):
            run(config, Quiet())
    else:
        assert len(run(config, Quiet(), Summary()).results) == 1
    assert (seen, threads()) == ([during], 3)


def test_what_a_folder_leaves_out_is_in_the_summary(tmp_path, make_model, monkeypatch):
    write_picture(tmp_path / "in" / "a.png", np.full((8, 8, 3), 9, np.uint8))
    (tmp_path / "in" / "notes.txt").write_text("x")
    monkeypatch.setattr(running, "opened_model", lambda _: make_model())
    summary = run(RunConfig(inputs=(str(tmp_path / "in"),), output=str(tmp_path / "out")), Quiet())
    assert summary.to_dict()["left_out"] == {".txt": 1}
    assert summary.notes == ["1 file is no picture or video and left out, by suffix: 1 .txt"]
    assert not summary.failures


def test_a_page_is_for_pictures(tmp_path, make_model, monkeypatch, write_video):
    from tests.runtime.media.image.tiff_files import page, tiff

    bright, dark = np.full((40, 60, 3), 250, np.uint8), np.full((40, 60, 3), 9, np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(page(dark), page(bright)))
    write_video(tmp_path / "b.mp4", [dark])
    write_picture(tmp_path / "c.png", dark)
    monkeypatch.setattr(running, "opened_model", lambda _: make_model())
    summary = run(RunConfig(inputs=(str(tmp_path),), output=str(tmp_path / "out"), page=2), Quiet())
    assert [result.source.name for result in summary.results] == ["a.tif"]
    assert cv2.imread(str(tmp_path / "out" / "a.mask.png"), cv2.IMREAD_GRAYSCALE).min() > 200
    assert sorted(failure.error for failure in summary.failures) == [
        f"{tmp_path}/b.mp4: is a video; --page is for pictures",
        f"{tmp_path}/c.png: has 1 page; there is no page 2",
    ]
    with pytest.raises(UsageError, match="page is 0; it must be at least 1"):
        RunConfig(inputs=("a.tif",), page=0)
