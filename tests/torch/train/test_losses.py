"""Each loss term equals an independent computation, and gradients stay finite where they usually break."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from basnet_torch.model.basnet import SaliencyMaps
from basnet_torch.train.losses import bce, gaussian_band, hybrid_loss, iou, ssim


def maps_of(logits):
    return SaliencyMaps(*(logits.clone() for _ in range(8)))


def test_band_matrix_is_the_zero_padded_gaussian():
    position = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(position**2) / (2 * 1.5**2))
    window = (window / window.sum()).float()
    image = torch.rand(1, 1, 40, 24)
    direct = F.conv2d(image, (window[:, None] * window[None, :])[None, None], padding=5)
    torch.testing.assert_close(gaussian_band(40) @ image @ gaussian_band(24), direct, rtol=0, atol=1e-6)


def test_ssim_equals_scikit_image_away_from_the_border():
    """Scikit-image pads by reflection, this loss with zeros, so the outer window is left out of both."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 48, 48)).astype(np.float32)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, theirs = structural_similarity(a, b, full=True, **options)
    ours = ssim_map(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(ours[10:-10, 10:-10], theirs[10:-10, 10:-10], atol=2e-5)
    whole = ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None])
    assert whole.item() == pytest.approx(float(ours.mean()), abs=1e-5)


def ssim_map(a, b):
    """The formula by 2-D convolutions in float64."""
    position = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(position**2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def blur(x):
        return F.conv2d(x.double()[None, None], window[None, None], padding=5)[0, 0]

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    top = (2 * ma * mb + 0.01**2) * (2 * cov + 0.03**2)
    return (top / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2))).numpy()


def test_iou_and_bce_by_hand():
    p = torch.tensor([[[[0.5, 1.0], [0.0, 0.25]]]])
    g = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert iou(p, g).item() == pytest.approx(1.5 / (1.75 + 2 - 1.5))
    logits = torch.tensor([[[[0.0, 2.0]]]])
    expected = [-np.log(0.5), -np.log(1 - 1 / (1 + np.exp(-2)))]
    np.testing.assert_allclose(bce(logits, torch.tensor([[[[1.0, 0.0]]]])).flatten(), expected, rtol=1e-6)


def test_iou_is_taken_per_picture_not_over_the_batch():
    p = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)])
    g = torch.stack([torch.ones(1, 4, 4), torch.ones(1, 4, 4)])
    assert iou(p, g).flatten().tolist() == [1.0, 0.0]


def test_the_sum_is_three_terms_over_eight_maps():
    logits, target = torch.randn(2, 1, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    loss = hybrid_loss(maps_of(logits), target)
    p = torch.sigmoid(logits)
    one = F.binary_cross_entropy(p, target) + (1 - ssim(p, target)).mean() + (1 - iou(p, target)).mean()
    assert loss.total.item() == pytest.approx(8 * one.item(), rel=1e-5)
    assert {name: values.shape for name, values in loss.terms.items()} == dict.fromkeys(("bce", "ssim", "iou"), (8,))


@pytest.mark.parametrize("value", [-100.0, 0.0, 100.0], ids=["saturated low", "flat", "saturated high"])
@pytest.mark.parametrize("truth", [0.0, 1.0], ids=["empty", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_are_finite_at_the_extremes(value, truth, dtype):
    logits = torch.full((1, 1, 32, 32), value, dtype=dtype, requires_grad=True)
    loss = hybrid_loss(SaliencyMaps(*(logits * 1 for _ in range(8))), torch.full((1, 1, 32, 32), truth))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert torch.isfinite(logits.grad).all()
    assert loss.first_not_finite() is None


def test_the_first_broken_term_is_named():
    maps = maps_of(torch.zeros(1, 1, 32, 32))._replace(decoder3=torch.full((1, 1, 32, 32), float("nan")))
    assert hybrid_loss(maps, torch.zeros(1, 1, 32, 32)).first_not_finite() == "bce of decoder3"


def test_what_is_left_out_changes_neither_the_loss_nor_a_gradient():
    torch.manual_seed(0)
    counted = torch.ones(2, 1, 32, 32)
    counted[:, :, 8:20, 4:16] = 0
    logits, target = torch.randn(2, 1, 32, 32, requires_grad=True), (torch.rand(2, 1, 32, 32) > 0.5).float()
    loss = hybrid_loss(maps_of(logits), target, counted=counted)
    loss.total.backward()
    assert not logits.grad[counted == 0].any()
    assert logits.grad[counted == 1].all()
    other = torch.where(counted == 0, 5 * torch.randn_like(logits), logits)
    truth = torch.where(counted == 0, 1 - target, target)
    assert torch.equal(hybrid_loss(maps_of(other), truth, counted=counted).total, loss.total)
    assert not torch.equal(hybrid_loss(maps_of(other), truth).total, hybrid_loss(maps_of(logits), target).total)


def test_where_all_counts_the_loss_is_the_same_and_where_nothing_does_it_is_none():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 1, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    whole = hybrid_loss(maps_of(logits), target, counted=torch.ones(2, 1, 32, 32))
    assert whole.total.item() == pytest.approx(hybrid_loss(maps_of(logits), target).total.item(), rel=1e-6)
    nothing = hybrid_loss(maps_of(logits), target, counted=torch.zeros(2, 1, 32, 32))
    assert nothing.total.item() == 0


def test_means_are_of_the_pixels_that_count_and_pictures_weigh_the_same():
    counted = torch.zeros(2, 1, 32, 32)
    counted[0, :, :16] = counted[1, :, :2] = 1
    logits, target = torch.randn(2, 1, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    loss = hybrid_loss(maps_of(logits), target, "bce", counted=counted)
    each = [bce(logits[i, :, :rows], target[i, :, :rows]).mean() for i, rows in ((0, 16), (1, 2))]
    assert loss.terms["bce"][0].item() == pytest.approx(sum(each).item() / 2, rel=1e-5)
