"""Which network a number is of: a checkpoint and its FP32 export are one, all else is a file of its own."""

import pytest

from basnet_benchmarks.candidates import fingerprint_of
from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_runtime.manifest import sha256_of
from basnet_torch.errors import CheckpointError, ModelFileError


def export(bench_models, output, **options):
    return export_onnx(ExportConfig(checkpoint=bench_models.checkpoint, output=output, check=False, **options))


def test_an_export_in_fp32_is_its_checkpoint(bench_models):
    assert fingerprint_of(bench_models.onnx) == fingerprint_of(bench_models.checkpoint)
    assert fingerprint_of(bench_models.onnx) != fingerprint_of(bench_models.flat)


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"graph": "frame"}])
def test_a_file_that_computes_otherwise_is_itself(bench_models, tmp_path, options):
    file = export(bench_models, tmp_path / "same.onnx", **options)
    assert fingerprint_of(file) == sha256_of(file)[:12]


def test_another_size_is_another_network(bench_models, tmp_path):
    wide = export(bench_models, tmp_path / "wide.onnx", size=(64, 96))
    assert fingerprint_of(wide) != fingerprint_of(bench_models.checkpoint)


def test_what_cannot_be_read_is_said(tmp_path):
    for name, error in (("a.onnx", ModelFileError), ("a.pth", CheckpointError)):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(error):
            fingerprint_of(tmp_path / name)
