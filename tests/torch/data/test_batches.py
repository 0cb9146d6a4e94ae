"""A batch depends on seed and step alone; picture and mask are cut and turned together."""

import numpy as np
import pytest

from basnet_torch.data.batches import Augment, BatchStream
from basnet_torch.data.datasets import PairStore


def stream(store, seed=0, **augment):
    return BatchStream(store, Augment(size=32, **augment), batch=5, seed=seed)


def test_a_step_gives_the_same_batch_in_any_order(store):
    first = [stream(store).at(step) for step in range(6)]
    again = stream(store)
    for step in (5, 0, 3):
        for a, b in zip(again.at(step), first[step], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0][0], stream(store, seed=1).at(0)[0])


def test_prepared_ahead_equals_prepared_on_demand(store):
    with stream(store).ahead(2, 7) as batches:
        ahead = list(batches)
    assert len(ahead) == 5
    np.testing.assert_array_equal(ahead[3][0], stream(store).at(5)[0])


def test_every_pass_sees_every_picture_once(store):
    whole = Augment(size=64, scale=(1.0, 1.0), stretch=1.0, flip=0.0)
    batches = [BatchStream(store, whole, batch=4, seed=0).at(step)[0] for step in range(3)]
    seen = {batch.tobytes() for batch in np.concatenate(batches)}
    assert seen == {image.tobytes() for image in store.images}


def test_the_mask_follows_the_picture(store):
    for step in range(4):
        images, masks = stream(store).at(step)
        inside, outside = images[masks == 255], images[masks == 0]
        assert inside.mean() > 150
        assert outside.mean() < 100


def test_the_papers_crop_copies_pixels():
    image = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
    crop = Augment(size=32, scale=(0.5, 0.5), stretch=1.0, flip=0.0)
    cut, mask = crop(image, image[..., 0], np.random.default_rng(0))
    assert any(np.array_equal(cut, image[y : y + 32, x : x + 32]) for y in range(33) for x in range(33))
    np.testing.assert_array_equal(mask, cut[..., 0])


def test_an_error_in_the_thread_is_raised_and_leaving_early_ends_it(store):
    broken = PairStore(store.names, store.images[:3], store.masks)
    with pytest.raises(IndexError), stream(broken).ahead(0, 50) as batches:
        list(batches)
    with stream(store).ahead(0, 10**6) as batches:
        next(iter(batches))


@pytest.mark.parametrize(("fields", "message"), [({"scale": (0.9, 0.5)}, "scale"), ({"stretch": 0.5}, "stretch")])
def test_augment_refuses_nonsense(fields, message):
    with pytest.raises(ValueError, match=message):
        Augment(size=32, **fields)


def test_batch_larger_than_the_store(store):
    with pytest.raises(ValueError, match=r"1\.\.12"):
        BatchStream(store, Augment(size=32), batch=13, seed=0)
