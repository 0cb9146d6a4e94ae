"""`basnet-export checkpoint`: the same weights in another form."""

import shutil

import pytest
import torch
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_export.engine.config import BuildConfig
from basnet_runtime.open import BUILTIN
from basnet_torch.checkpoint import load_checkpoint, save_authors_checkpoint
from basnet_torch.errors import UsageError
from basnet_torch.model.basnet import BASNet


def inspected(path):
    return CliRunner().invoke(app, ["inspect", str(path)])


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


def test_files_are_judged_by_content(tmp_path):
    save_authors_checkpoint(tmp_path / "weights.onnx", BASNet(2).state_dict())
    for name in ("weights.ckpt", "weights.bin", "weights"):
        shutil.copy(tmp_path / "weights.onnx", tmp_path / name)
    shutil.copy(BUILTIN, tmp_path / "graph.pth")
    for name in ("weights.onnx", "weights.ckpt", "weights.bin", "weights"):
        assert "PyTorch checkpoint of BASNet" in inspected(tmp_path / name).stdout
    assert "ONNX, tensor graph of BASNet" in inspected(tmp_path / "graph.pth").stdout


def test_what_is_no_model_is_one_line(tmp_path):
    contents = {"a.bin": b"hello", "b.bin": b"<html>", "c": b"", "d.bin": b"version https://git-lfs.github.com/spec/v1"}
    said = ("5 bytes of no known kind", "is a web page", "0 bytes of no known kind", "git lfs pull")
    for (name, content), message in zip(contents.items(), said, strict=True):
        (tmp_path / name).write_bytes(content)
        result = inspected(tmp_path / name)
        assert (result.exit_code, len(result.stderr.splitlines()), message in result.stderr) == (1, 1, True)
    assert "is a folder" in inspected(tmp_path).stderr
    assert "no such file" in inspected(tmp_path / "absent.bin").stderr
    refused = CliRunner().invoke(app, ["onnx", str(shutil.copy(BUILTIN, tmp_path / "graph.pth"))])
    assert (refused.exit_code, "is an export already" in refused.stderr) == (2, True)


def test_a_checkpoint_named_like_its_export_is_not_overwritten(tmp_path):
    save_authors_checkpoint(tmp_path / "weights.onnx", BASNet(2).state_dict())
    before = (tmp_path / "weights.onnx").read_bytes()
    result = CliRunner().invoke(app, ["onnx", str(tmp_path / "weights.onnx"), "--overwrite"])
    assert (result.exit_code, "is the checkpoint itself" in result.stderr) == (2, True)
    assert (tmp_path / "weights.onnx").read_bytes() == before


def test_an_engine_is_not_built_from_a_plan(tmp_path):
    (tmp_path / "a.plan").write_bytes(b"plan")
    with pytest.raises(UsageError, match="is a plan"):
        BuildConfig(model=tmp_path / "a.plan")
