"""The score, the decision, and what becomes of a weak mask."""

from __future__ import annotations

import numpy as np
import pytest

from basnet_runtime.frame import Frame
from basnet_runtime.salience import SalienceDecision, SalienceLog, SalienceThreshold, salience_score

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


def test_a_weak_mask_is_kept_and_can_be_emptied(make_model):
    mask_HW, decision = make_model().postprocessor()(FRAME, flat(0.08))
    assert not decision.salient
    assert decision.score == pytest.approx(0.08)
    assert (mask_HW == 20).all()
    mask_HW, decision = make_model().postprocessor(empty_weak=True)(FRAME, flat(0.08))
    assert not decision.salient
    assert mask_HW.shape == (40, 60)
    assert not mask_HW.any()


def test_a_found_object_is_not_touched(make_model):
    mask_HW, decision = make_model().postprocessor()(FRAME, flat(0.4))
    assert decision.salient
    assert (mask_HW == 102).all()


def test_a_stream_does_not_blink_and_pictures_are_apart():
    scores = [0.5, 0.46, 0.42, 0.46, 0.5]

    def found(decide):
        return [decide(flat(score)).salient for score in scores]

    assert found(SalienceThreshold(0.5, stream=True)) == [True, True, False, False, True]
    assert found(SalienceThreshold(0.5)) == [True, False, False, False, True]


def test_a_log_without_frames_and_of_one():
    log = SalienceLog()
    assert log.to_dict() == {"salient": False, "score": 0.0, "frame_scores": [], "weak_frames": 0, "weak_spans": []}
    assert log.note(emptied=False) is None
    log.add(SalienceDecision(score=0.25, salient=False))
    assert log.to_dict() == {"salient": False, "score": 0.25}
    assert log.note(emptied=True) == "salient: false (score 0.250); its mask is empty"


def test_a_log_of_found_objects_says_nothing():
    log = SalienceLog()
    for _ in range(3):
        log.add(SalienceDecision(score=0.9, salient=True))
        assert log.note(emptied=False) is None
