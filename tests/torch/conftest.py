"""Small networks and drawn pictures for the reference package's tests."""

import cv2
import numpy as np
import pytest
import torch

from basnet_torch.data.datasets import PairStore
from basnet_torch.model.basnet import BASNet


@pytest.fixture
def small_model():
    """Width 4 with batch statistics that are not the identity, so that batch norm matters."""
    return randomized(BASNet(4), seed=0)


def randomized(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif ".norm" in name and name.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)
    return model.eval()


def draw_pairs(count, size, seed=0):
    """Bright discs on dark noise and their masks: uint8 N,S,S,3 and N,S,S."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, size, size, 3), dtype=np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        center = tuple(int(v) for v in rng.integers(size // 4, 3 * size // 4, 2))
        cv2.circle(mask, center, int(rng.integers(size // 8, size // 4)), 255, -1)
        image[mask > 0] = rng.integers(150, 255, 3, dtype=np.uint8)
    return images, masks


@pytest.fixture
def store():
    images, masks = draw_pairs(12, 64)
    return PairStore(tuple(f"disc{i}" for i in range(12)), images, masks)


@pytest.fixture
def pair_folder(tmp_path):
    """Six drawn pairs on disk, laid out as DUTS."""
    images, masks = draw_pairs(6, 72, seed=3)
    for folder in ("DUTS-TR-Image", "DUTS-TR-Mask"):
        (tmp_path / "duts" / folder).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        write_png(tmp_path / "duts/DUTS-TR-Image" / f"disc{i}.png", image[..., ::-1])
        write_png(tmp_path / "duts/DUTS-TR-Mask" / f"disc{i}.png", mask)
    return tmp_path / "duts"


def write_png(path, array):
    done, data = cv2.imencode(".png", array)
    assert done
    path.write_bytes(data.tobytes())
