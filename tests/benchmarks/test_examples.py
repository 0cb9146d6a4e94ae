"""The model card's sheet: every photograph with its mask and verdict."""

import cv2
import numpy as np
import pytest

from basnet_benchmarks.examples import NAMES, main, write_examples
from basnet_torch.errors import UsageError
from tests.conftest import make_fake_model


def test_every_photograph_is_on_the_sheet(tmp_path):
    pytest.importorskip("skimage")
    write_examples(tmp_path / "sheet.png", make_fake_model(), columns=3)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    rows = -(-len(NAMES) // 3)
    assert sheet.shape[0] % rows == 0
    cell = sheet[: sheet.shape[0] // rows, : sheet.shape[1] // 3]
    assert cell.shape[1] > 3 * 150  # picture, mask, dimmed picture
    assert len(np.unique(cell)) > 100


def test_an_unknown_photograph_is_named(tmp_path):
    pytest.importorskip("skimage")
    with pytest.raises(UsageError, match="noone: scikit-image has no such photograph"):
        write_examples(tmp_path / "sheet.png", make_fake_model(), names=["noone"])


def test_the_command_writes_it(tmp_path):
    pytest.importorskip("skimage")
    main(["-o", str(tmp_path / "sheet.jpg")])
    assert (tmp_path / "sheet.jpg").stat().st_size > 10_000
