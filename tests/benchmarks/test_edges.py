"""The measures of colours and edges: the truth itself scores perfectly, and estimating colours pays."""

from __future__ import annotations

import json

import cv2
import numpy as np
from typer.testing import CliRunner

from basnet_benchmarks import edge_sheet, edges
from basnet_benchmarks.cli import app
from basnet_benchmarks.edges import strands
from basnet_runtime.media.pictures import read_picture


def test_the_mask_is_soft_and_fine_and_the_same_each_time():
    mask = strands(120, 160, seed=3)
    assert mask.shape == (120, 160)
    soft = (mask > 5) & (mask < 250)
    assert 0.03 < soft.mean() < 0.5
    assert mask.max() == 255
    assert (mask[:2] == 0).all()
    assert (mask == strands(120, 160, seed=3)).all()
    assert (mask != strands(120, 160, seed=4)).any()


def test_the_rim_of_the_truth_is_nothing():
    made = next(iter(edges.compositions((96, 128))))
    assert edges._rim(made.front_HWC, made, made.mask_HW) == 0
    assert edges._rim(made.image_HWC, made, made.mask_HW) > 10


def test_the_command_on_a_data_set(tmp_path, monkeypatch, make_model):
    monkeypatch.setattr(edges, "open_model", lambda *_, **__: make_model())
    monkeypatch.setattr(edges, "compositions", lambda size=None: list(two()))
    monkeypatch.setattr(edges, "find_spec", lambda name: None)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 20:50] = 255
    cv2.imwrite(str(tmp_path / "set" / "images" / "a.png"), mask)
    cv2.imwrite(str(tmp_path / "set" / "masks" / "a.png"), mask)
    answer = CliRunner().invoke(app, ["edges", str(tmp_path / "set"), "--json"])
    assert answer.exit_code == 0, answer.stderr
    rows = {row["name"]: row["values"] for row in json.loads(answer.stdout)["rows"]}
    colour = rows["wrong colour at edges, levels, exact mask"]
    assert colour["ours"] < colour["as it is"]
    assert colour["pymatting, multi-level"] is None
    assert rows["boundary IoU on set, edges refined"]["as it is"] > 0.9
    assert rows["foreground colours, ms at 1280 x 720"]["ours"] > 0
    out = tmp_path / "edges.md"
    sheet = tmp_path / "sheet.jpg"
    monkeypatch.setattr(edge_sheet, "open_model", lambda *_, **__: make_model())
    monkeypatch.setattr(edge_sheet, "compositions", lambda: list(two((300, 420))))
    assert CliRunner().invoke(app, ["edges", "-o", str(out), "--sheet", str(sheet)]).exit_code == 0
    assert read_picture(sheet).image_HWC.shape == (6 * 206, 5 * 206, 3)
    assert "| wrong colour at edges, levels, exact mask | less | 2 |" in out.read_text()


def two(size=(96, 128)):
    whole = edges_compositions(size)
    return (next(whole) for _ in range(2))


edges_compositions = edges.compositions
