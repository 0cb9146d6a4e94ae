"""The network is the paper's: parameter counts, names, shapes, and values against an independent forward pass."""

import json
from pathlib import Path

import pytest
import torch

from basnet_torch.model.basnet import BASNet, SaliencyMaps
from basnet_torch.weights.keymap import authors_from_ours, ours_from_authors
from tests.torch.model.authors_forward import authors_forward

AUTHORS = Path(__file__).parents[2] / "data" / "authors_state_dict.json"


@pytest.mark.parametrize(("width", "parameters"), [(64, 87_060_360), (16, 5_455_080)])
def test_parameter_count(width, parameters):
    with torch.device("meta"):
        model = BASNet(width)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_names_and_shapes_equal_the_authors():
    with torch.device("meta"):
        state = authors_from_ours(BASNet(64).state_dict())
    wanted = json.loads(AUTHORS.read_text())
    assert len(wanted) == 517
    assert {name: list(value.shape) for name, value in state.items()} == wanted


def test_key_map_is_one_to_one(small_model):
    state = small_model.state_dict()
    there = authors_from_ours(state)
    assert len(there) == len(state) == 517
    assert not set(there) & set(state)
    assert ours_from_authors(there).keys() == state.keys()


def test_eight_maps_equal_an_independent_forward_pass(small_model):
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        ours = small_model(image)
        theirs = authors_forward(authors_from_ours(small_model.state_dict()), image)
    assert isinstance(ours, SaliencyMaps)
    for name, a, b in zip(SaliencyMaps._fields, ours, theirs, strict=True):
        assert a.shape == (2, 1, 64, 96), name
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_mask_is_the_refined_map_through_a_sigmoid(small_model):
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small_model.mask(image), torch.sigmoid(small_model(image).refined))


def test_a_picture_does_not_depend_on_its_batch(small_model):
    """In float64, where rounding that differs between batch sizes does not hide a dependence."""
    model, images = small_model.double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        together = model(images).refined
        alone = torch.cat([model(image[None]).refined for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_sizes_that_do_not_fit_are_refused_with_the_next_that_do(small_model):
    with pytest.raises(ValueError, match=r"250x224 .* 224x224 and 256x224"):
        small_model(torch.zeros(1, 3, 250, 224))


def test_width_must_be_positive():
    with pytest.raises(ValueError, match="width is 0"):
        BASNet(0)
