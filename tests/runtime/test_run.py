"""What a run leaves as it found it."""

import cv2
import numpy as np
import pytest

from basnet_runtime import run as running
from basnet_runtime.media.pictures import write_picture
from basnet_runtime.run import RunConfig, Summary, run
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
    monkeypatch.setattr(running, "_open_model", lambda _: model)
    config = RunConfig(inputs=(str(tmp_path / "a.png"),), device=Device.parse(device))
    if fails:
        with pytest.raises(UsageError, match="fails"):
            run(config, Quiet())
    else:
        assert len(run(config, Quiet(), Summary()).results) == 1
    assert (seen, threads()) == ([during], 3)
