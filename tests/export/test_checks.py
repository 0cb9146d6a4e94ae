"""What batches are checked with."""

import numpy as np
import pytest

from basnet_export.checks import BATCHES, _prepared
from basnet_runtime.parity import Picture
from tests.conftest import make_fake_model


@pytest.mark.parametrize("count", [1, 3, 9])
def test_as_many_inputs_as_the_largest_batch_and_no_two_alike(count):
    noise = np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8)
    pictures = [Picture(name=str(i), image_HWC=image[: 40 - i % 2]) for i, image in enumerate(noise)]
    prepared = _prepared(make_fake_model(), pictures)
    assert len(prepared) == max(BATCHES)
    assert len({one.tobytes() for one in prepared}) == len(prepared)
    assert {one.shape for one in prepared} == {(3, 64, 64)}
