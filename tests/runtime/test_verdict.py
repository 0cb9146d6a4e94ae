"""The score, the verdict and what becomes of a mask without an object."""

from __future__ import annotations

import numpy as np
import pytest

from basnet_runtime.finish import Finisher, Finishing
from basnet_runtime.media.frame import Frame
from basnet_runtime.verdict import Judge, Verdict, VerdictLog, salience_score

FRAME = Frame(image_HWC=np.zeros((40, 60, 3), np.uint8))


def flat(value):
    return np.full((1, 64, 64), value, np.float32)


def test_one_loud_pixel_is_no_object():
    noise = np.zeros((256, 256), np.float32)
    noise[3, 5] = 1
    assert salience_score(noise) == 0
    noise[20:30, 20:30] = 0.9
    assert salience_score(noise) == pytest.approx(0.9)


@pytest.mark.parametrize("scale", [2, 5, 13])
def test_the_score_does_not_depend_on_the_size(scale):
    rng = np.random.default_rng(0)
    small = np.zeros((64, 64), np.float32)
    small[20:40, 10:30] = rng.uniform(0.7, 0.9, (20, 20))
    large = np.kron(small, np.ones((scale, scale), np.float32))
    assert salience_score(large) == pytest.approx(salience_score(small), abs=0.02)
    assert salience_score((large * 255).astype(np.uint8)) == pytest.approx(salience_score(small), abs=0.02)


def test_nothing_found_is_an_empty_mask_and_can_be_kept(make_model):
    mask_HW, verdict = Finisher(make_model())(FRAME, flat(0.08))
    assert not verdict.salient
    assert verdict.score == pytest.approx(0.08)
    assert mask_HW.shape == (40, 60)
    assert not mask_HW.any()
    mask_HW, verdict = Finisher(make_model(), Finishing(keep_weak=True))(FRAME, flat(0.08))
    assert not verdict.salient
    assert (mask_HW == 20).all()


def test_a_found_object_is_not_touched(make_model):
    mask_HW, verdict = Finisher(make_model())(FRAME, flat(0.4))
    assert verdict.salient
    assert (mask_HW == 102).all()


def test_a_stream_does_not_blink_and_pictures_are_apart():
    scores = [0.5, 0.46, 0.42, 0.46, 0.5]

    def found(judge):
        return [judge(flat(score)).salient for score in scores]

    assert found(Judge(0.5, stream=True)) == [True, True, False, False, True]
    assert found(Judge(0.5)) == [True, False, False, False, True]


def test_a_log_of_an_empty_video():
    log = VerdictLog()
    assert log.to_dict() == {"salient": False, "score": 0.0, "frame_scores": [], "empty_frames": []}
    log.add(Verdict(score=0.25, salient=False))
    assert log.to_dict() == {"salient": False, "score": 0.25}
