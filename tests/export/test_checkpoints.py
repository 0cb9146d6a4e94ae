"""`basnet-export checkpoint`: the same weights in another form."""

import torch
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_torch.checkpoint import load_checkpoint, save_authors_checkpoint
from basnet_torch.model import BASNet


def call(*arguments):
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)])


def test_to_safetensors_and_back_to_the_authors(tmp_path):
    state = BASNet(2).state_dict()
    save_authors_checkpoint(tmp_path / "basnet.pth", state)
    there = call(tmp_path / "basnet.pth", "-o", tmp_path / "a.safetensors", "--store", "fp16")
    back = call(tmp_path / "a.safetensors", "-o", tmp_path / "b.pth", "--layout", "authors")
    assert (there.exit_code, back.exit_code) == (0, 0), there.output + back.output
    original = torch.load(tmp_path / "basnet.pth", weights_only=True)
    returned = torch.load(tmp_path / "b.pth", weights_only=True)
    assert original.keys() == returned.keys()
    for name, value in original.items():
        wanted = value.half().float() if value.is_floating_point() else value
        assert torch.equal(returned[name], wanted), name
    assert load_checkpoint(tmp_path / "a.safetensors").preprocess.scale == "image_max"


def test_another_input_size_travels_with_the_weights(tmp_path):
    save_authors_checkpoint(tmp_path / "basnet.pth", BASNet(2).state_dict())
    result = call(tmp_path / "basnet.pth", "-o", tmp_path / "a.pth", "--size", "64x96")
    assert result.exit_code == 0, result.output
    preprocess = load_checkpoint(tmp_path / "a.pth").preprocess
    assert (preprocess.height, preprocess.width) == (64, 96)


def test_refusals(tmp_path):
    save_authors_checkpoint(tmp_path / "basnet.pth", BASNet(2).state_dict())
    before = (tmp_path / "basnet.pth").read_bytes()
    for target, options in (
        ("basnet.pth", ()),
        ("a.txt", ()),
        ("a.safetensors", ("--layout", "authors")),
        ("a.pth", ("--layout", "authors", "--size", 64)),
        ("a.pth", ("--size", 33)),
    ):
        result = call(tmp_path / "basnet.pth", "-o", tmp_path / target, *options)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert (tmp_path / "basnet.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["basnet.pth"]


def test_what_the_authors_layout_loses_is_said(tmp_path):
    save_authors_checkpoint(tmp_path / "basnet.pth", BASNet(2).state_dict())
    assert "warning" not in call(tmp_path / "basnet.pth", "-o", tmp_path / "a.pth", "--layout", "authors").stderr
    call(tmp_path / "basnet.pth", "-o", tmp_path / "b.pth", "--size", 64)
    result = call(tmp_path / "b.pth", "-o", tmp_path / "c.pth", "--layout", "authors")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: the authors' layout holds weights alone;")
    assert "height 64 becomes 256, width 64 becomes 256" in result.stderr
