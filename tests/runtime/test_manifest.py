"""Manifests: round trips, both places, contradictions, and files that are no models."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basnet_runtime.manifest import METADATA_KEY, Manifest, manifest_path, read_manifest, sha256_of
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_torch.errors import ModelFileError
from basnet_torch.json_values import to_plain
from basnet_torch.spec import Postprocess, Preprocess, TensorSpec

RECEIPT = {"pictures": 5, "max_abs": 1e-6, "mean_abs": 1e-7, "flips": 0.0, "boundary_iou": 1.0, "ran": "a backend"}


def manifest(**changes):
    values = {
        "kind": "onnx",
        "graph": "tensor",
        "precision": "fp32",
        "width": 4,
        "preprocess": Preprocess(height=32, width=64, scale="image_max"),
        "postprocess": Postprocess(stretch=True),
        "input": TensorSpec(name="image", dtype="float32", shape=(None, 3, 32, 64)),
        "output": TensorSpec(name="mask", dtype="float32", shape=(None, 1, 32, 64)),
        "opset": 18,
        "checkpoint": "é.pth",
        "checkpoint_sha256": "ab" * 32,
        "origin": "authors",
        "created": "2026-01-01T00:00:00+00:00",
        "exporter": {"torch": "2.13"},
        "parity": RECEIPT,
    }
    return Manifest(**{**values, **changes})


def write_model(path, text=None, *, size=(32, 64)):
    """A graph of one operation with the shapes of `manifest()`, and `text` as its metadata."""
    helper = onnx.helper
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, *size])
    mask = helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["batch", 1, *size])
    axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
    node = helper.make_node("ReduceMean", ["image", "axes"], ["mask"])
    graph = helper.make_graph([node], "mean", [image], [mask], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="test")
    if text is not None:
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def test_json_round_trip():
    assert Manifest.from_json(manifest().to_json()) == manifest()
    assert json.loads(manifest().to_json())["preprocess_digest"] == manifest().preprocess.digest()


@given(
    graph=st.sampled_from(["tensor", "frame"]),
    precision=st.sampled_from(["fp32", "fp16", "bf16", "int8"]),
    width=st.integers(1, 512),
    checkpoint=st.text(max_size=20),
    parity=st.none() | st.fixed_dictionaries(dict.fromkeys(RECEIPT, st.floats(allow_nan=False, allow_infinity=False))),
)
def test_json_round_trip_of_any_value(**changes):
    assert Manifest.from_json(manifest(**changes).to_json()) == manifest(**changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format is 2; this version reads 1"),
        ({"color": "blue"}, "unknown fields color"),
        ({"precision": "fp4"}, "precision is 'fp4'"),
        ({"preprocess": {"height": 32}}, "preprocess: missing fields mean, scale, std, width"),
        ({"preprocess": to_plain(Preprocess(height=64, width=64))}, "preprocess_digest is .* changed by hand"),
        ({"preprocess_digest": None}, "preprocess_digest is None"),
    ],
)
def test_unknown_records_are_refused(change, reason):
    text = json.dumps({**json.loads(manifest().to_json()), **change})
    with pytest.raises(ValueError, match=reason):
        Manifest.from_json(text)


def test_read_from_the_file_alone(tmp_path):
    path = write_model(tmp_path / "a.onnx", manifest().to_json())
    assert read_manifest(path) == manifest()


def test_read_from_beside_alone(tmp_path):
    path = write_model(tmp_path / "a.onnx")
    beside = manifest(onnx_sha256=sha256_of(path))
    manifest_path(path).write_text(beside.to_json(), encoding="utf-8")
    assert read_manifest(path) == beside
    assert manifest_path(path).name == "a.onnx.json"


def test_contradictions_are_refused(tmp_path):
    path = write_model(tmp_path / "a.onnx", manifest().to_json())
    beside = manifest(onnx_sha256=sha256_of(path), width=8)
    manifest_path(path).write_text(beside.to_json(), encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"contradicts a.onnx.json in width"):
        read_manifest(path)
    manifest_path(path).write_text(replace(beside, width=4, onnx_sha256="0" * 64).to_json(), encoding="utf-8")
    with pytest.raises(ModelFileError, match="SHA-256 differs"):
        read_manifest(path)


def test_a_manifest_of_another_graph_is_refused(tmp_path):
    path = write_model(tmp_path / "a.onnx", manifest().to_json(), size=(64, 64))
    with pytest.raises(ModelFileError, match=r"its graph has image float32 .x3x64x64 where its manifest says"):
        read_manifest(path)


def test_a_foreign_graph_says_what_was_found(tmp_path):
    with pytest.raises(ModelFileError, match=r"written by test; takes image float32 .x3x32x64; returns mask") as caught:
        read_manifest(write_model(tmp_path / "a.onnx"))
    assert "\n" not in str(caught.value)


def test_header_agrees_with_onnx(tmp_path):
    header = read_onnx_header(write_model(tmp_path / "a.onnx", "{}"))
    assert header.inputs == (manifest().input,)
    assert header.outputs == (manifest().output,)
    assert (header.opset, header.nodes, header.producer, header.metadata) == (18, 1, "test", {METADATA_KEY: "{}"})


def test_a_file_that_may_not_be_read_is_told_in_one_line(tmp_path, monkeypatch):
    path = write_model(tmp_path / "a.onnx")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(ModelFileError, match=r"a.onnx: cannot be read \(Permission denied\)"):
        read_onnx_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"PK\x03\x04rest", "rename it to .pth"),
        (b"\x00" * 100, "no complete ONNX file"),
        (b"\xff" * 100, "no complete ONNX file"),
        (b"hello world, this is no model", "no complete ONNX file"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(content, reason, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason) as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_found(tmp_path):
    whole = write_model(tmp_path / "a.onnx", manifest().to_json()).read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in range(1, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            read_manifest(cut)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        read_manifest(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        read_manifest(tmp_path / "none.onnx")
