"""FP16 files on the CPU: computed in FP32, which is said, and refused where FP16 was asked in so many words.

The network is one convolution whose result, 3 x 683 = 2049, lies between two FP16 numbers: the result tells what it was
computed in.
"""

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from basnet_benchmarks.candidates import Candidate, ModelSource, candidates_of
from basnet_runtime.manifest import METADATA_KEY
from basnet_runtime.open import open_model
from basnet_torch.device import CPU
from basnet_torch.errors import UsageError
from tests.runtime.test_manifest import manifest

SAID = "fp16 file computed in fp32"
x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors may have FP16")


@pytest.fixture
def fp16_file(tmp_path):
    nodes = [
        helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "weights"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["mask"], to=TensorProto.FLOAT),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 64])
    mask = helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 32, 64])
    weights = numpy_helper.from_array(np.full((1, 3, 1, 1), 683, np.float16), "weights")
    graph = helper.make_graph(nodes, "sum", [image], [mask], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: manifest(precision="fp16").to_json()})
    path = tmp_path / "half.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("backend", [pytest.param("onnxruntime", marks=x86), "openvino"])
def test_the_description_says_what_it_is_computed_in(fp16_file, backend):
    with open_model(fp16_file, backend=backend, threads=1) as model:
        values = model.backend.infer(np.ones((1, 3, 32, 64), np.float32))
        assert SAID in model.backend.description
    assert np.unique(values).tolist() == [2049]
    assert np.float16(2049) == 2048


def test_fp16_that_was_asked_is_refused_where_it_is_not_computed(fp16_file):
    with pytest.raises(UsageError, match=r"half.onnx with precision fp16: OpenVINO computes fp16 files in fp32"):
        open_model(fp16_file, backend="openvino", precision="fp16")


def test_benchmarks_name_it_by_what_it_computes_and_judge_it_by_what_it_is(fp16_file, tmp_path):
    found = candidates_of([ModelSource(str(fp16_file), tmp_path)], (), CPU, threads=1)
    assert [(str(c.variant), c.contract) for c in found] == [("onnxruntime fp16", "fp16"), ("openvino fp32", "fp16")]
    for candidate in found:
        with candidate.open() as model:
            assert model.backend.name == candidate.variant.backend


def test_other_files_are_judged_by_the_arithmetic(fp16_file, tmp_path):
    source = ModelSource(str(fp16_file), tmp_path)
    source.precision = "fp32"
    contracts = [Candidate(source=source, variant=v, device=CPU, threads=1).contract for v in source.variants(CPU)]
    assert contracts == ["fp32", "fp32", "bf16"]
