"""Widening keeps the function to rounding, and noise is what lets copies differ."""

import pytest
import torch

from basnet_torch.checkpoint import Checkpoint, model_from_checkpoint
from basnet_torch.errors import CheckpointError
from basnet_torch.model.registry import build_network
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.widen import widened
from tests.torch.conftest import randomized


def checkpoint(arch):
    torch.manual_seed(1)
    model = randomized(build_network(arch, 2), seed=1)
    parts = {"preprocess": Preprocess(height=32, width=64), "postprocess": Postprocess(), "origin": "basnet-deploy"}
    return Checkpoint(arch=arch, width=2, state=model.state_dict(), **parts)


def maps(found):
    torch.manual_seed(2)
    with torch.no_grad():
        return torch.cat(list(model_from_checkpoint(found)(torch.randn(2, 3, 32, 64))), 1)


@pytest.mark.parametrize("arch", ["basnet", "basnet-coarse", "fcn", "segnet", "unet", "hed"])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_wider_network_gives_the_same_maps(arch, factor):
    narrow = checkpoint(arch)
    wide = widened(narrow, 2 * factor, noise=0)
    before, after = maps(narrow), maps(wide)
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-3, atol=2e-4 * float(before.abs().max()))
    assert wide.preprocess == narrow.preprocess


def test_noise_tells_copies_apart_and_little_else():
    narrow = checkpoint("basnet")
    quiet, noisy = (widened(narrow, 4, noise=noise) for noise in (0, 0.01))
    name = "predict.bridge.0.conv.weight"
    assert torch.equal(quiet.state[name][0], quiet.state[name][1])
    assert not torch.equal(noisy.state[name][0], noisy.state[name][1])
    away = (maps(noisy) - maps(narrow)).std() / maps(narrow).std()
    assert 0 < away < 0.5
    assert torch.equal(widened(narrow, 4).state[name], noisy.state[name])


def test_the_same_width_is_the_same_and_a_fraction_is_refused():
    narrow = checkpoint("basnet")
    assert widened(narrow, 2) is narrow
    with pytest.raises(CheckpointError, match="width 5 is no multiple of the checkpoint's 2; ask 4, 6"):
        widened(narrow, 5)
