"""The table of the odd pictures, file by file, over a model without a network; and that the measuring measures."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_runtime.command.cli import app
from basnet_runtime.media.image.pictures import read_picture, write_picture
from basnet_torch.errors import MediaError
from tests.stress.odd import described_failure, described_result, measure_odd

EXPECTED = Path(__file__).parents[1] / "data" / "odd_pictures.json"


@pytest.fixture(scope="module")
def outcomes(data_root, tmp_path_factory):
    """Every odd file's outcome, of one run over all of them, and the folder of the results."""
    from tests.conftest import make_fake_model

    module = types.ModuleType("basnet_runtime.open")
    module.open_model = lambda *_, **__: make_fake_model()
    out = tmp_path_factory.mktemp("odd")
    files = [str(path) for path in sorted((data_root / "odd").iterdir())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "basnet_runtime.open", module)
        options = ["-o", f"{out}/", "--kind", "cutout", "--json", "--keep-suffix"]
        answer = CliRunner().invoke(app, [*files, *options])
    summary = json.loads(answer.stdout)
    found = {Path(item["source"]).name: described_result(item) for item in summary["results"]}
    found |= {Path(item["source"]).name: described_failure(item) for item in summary["failures"]}
    assert answer.exit_code == 1
    assert len(found) == len(files)
    return found, out


@pytest.mark.shared
def test_every_file_as_the_table_says(outcomes):
    assert outcomes[0] == json.loads(EXPECTED.read_text(encoding="utf-8"))


@pytest.mark.shared
def test_all_eight_orientations_come_out_upright(outcomes):
    out = outcomes[1]
    upright = read_picture(out / "exif_Landscape_1.jpg.cutout.png")
    for orientation in range(2, 9):
        turned = read_picture(out / f"exif_Landscape_{orientation}.jpg.cutout.png")
        assert turned.image_HWC.shape == upright.image_HWC.shape
        seen = (upright.alpha_HW > 128) & (turned.alpha_HW > 128)
        assert seen.mean() > 0.2
        assert np.abs(turned.image_HWC.astype(int) - upright.image_HWC)[seen].mean() < 8


def test_one_file_is_measured(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = 240
    write_picture(tmp_path / "a.png", image)
    file = measure_odd(tmp_path / "a.png", tmp_path / "out")
    assert (file.name, file.outcome, file.exit_code) == ("a.png", "png 60x40", 0)
    assert 50 < file.peak_mb < 1000
    assert file.cpu_seconds > 0
    (tmp_path / "b.png").write_text("x")
    failed = measure_odd(tmp_path / "b.png", tmp_path / "out")
    assert (failed.outcome, failed.exit_code) == (
        "error: b.png: cannot be read: unsupported image format",
        1,
    )


def test_errors_of_several_lines_are_refused():
    with pytest.raises(MediaError, match="several lines"):
        described_failure({"source": "a.jpg", "error": "a.jpg: one\ntwo"})


@pytest.mark.shared
@pytest.mark.stress
def test_no_file_takes_over_a_gigabyte_or_twenty_seconds(data_root, tmp_path):
    files = [measure_odd(path, tmp_path) for path in sorted((data_root / "odd").iterdir())]
    made = sum(file.exit_code == 0 for file in files)
    most = (max(file.peak_mb for file in files), max(file.seconds for file in files))
    print(f"{made} of {len(files)} gave a result; at most {most[0]} MB and {most[1]} s")
    assert [file for file in files if file.peak_mb > 1000 or file.seconds > 20] == []
