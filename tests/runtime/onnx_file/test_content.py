"""What a graph computes and in which types, whoever wrote the file; files that a tool changed after export."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from typer.testing import CliRunner

from basnet_export.cli import app
from basnet_runtime.manifest import METADATA_KEY, manifest_path, read_manifest
from basnet_runtime.onnx_file.content import read_graph_content
from basnet_runtime.open import open_model
from basnet_torch.errors import BackendUnavailable, ModelFileError
from tests.foreign import foreign_network
from tests.models import discs, exported, needs_int8


@pytest.fixture
def net(tmp_path):
    return foreign_network(tmp_path / "net.onnx", opset=17)


def saved(path, change):
    """A copy of the file with `change(model)` applied."""
    model = onnx.load(path)
    model = change(model) or model
    onnx.save(model, path.with_name("changed.onnx"))
    return path.with_name("changed.onnx")


def by_onnx_ir(model):
    return ir.to_proto(ir.from_proto(model))


def with_shapes_and_notes(model):
    model.graph.doc_string, model.producer_name = "a note", "another tool"
    model.graph.node[0].doc_string = "x" * 300
    helper.set_model_props(model, {"note": "more"})
    return onnx.shape_inference.infer_shapes(model)


def renamed(model):
    for node in model.graph.node:
        node.name = f"other_{node.name}"
        node.input[:] = [f"v.{n}" if n not in ("input", "") else n for n in node.input]
        node.output[:] = [f"v.{n}" if not n.startswith("d") else n for n in node.output]
    for tensor in model.graph.initializer:
        tensor.name = f"v.{tensor.name}"


def reordered(model):
    nodes, tensors = list(model.graph.node), list(model.graph.initializer)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(reversed(tensors))
    model.graph.node.extend([*nodes[:-2], nodes[-1], nodes[-2]])


def typed(model):
    """Weights in fields by type, where they were raw bytes."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, tensor.data_type, values.shape, values.ravel().tolist(), raw=False)
        )


def constants(model):
    """Weights as Constant nodes."""
    made = [
        helper.make_node(
            "Constant", [], [t.name], value=helper.make_tensor("", t.data_type, t.dims, t.raw_data, raw=True)
        )
        for t in model.graph.initializer
    ]
    nodes = list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend([*made, *nodes])


def dead_code(model):
    model.graph.node.append(helper.make_node("Abs", ["logits"], ["unused"]))


@pytest.mark.parametrize(
    "change",
    [by_onnx_ir, with_shapes_and_notes, renamed, reordered, typed, constants, dead_code],
    ids=lambda f: f.__name__,
)
def test_the_same_graph_written_otherwise(change, net):
    copy = saved(net, change)
    assert copy.read_bytes() != net.read_bytes()
    assert read_graph_content(copy) == read_graph_content(net)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT8, TensorProto.BFLOAT16])
def test_values_by_type_are_the_same_as_raw_ones(kind, tmp_path):
    values = np.array([[-3, 0, 5], [100, -1, 2]])

    def digest(*, raw):
        if raw:
            data = ir.Tensor(values.astype(ir.DataType(kind).numpy())).tobytes()
            tensor = helper.make_tensor("w", kind, values.shape, data, raw=True)
        else:
            tensor = helper.make_tensor("w", kind, values.shape, values.ravel().tolist())
        node = helper.make_node("Add", ["x", "w"], ["y"])
        x, y = (helper.make_tensor_value_info(name, kind, [2, 3]) for name in "xy")
        onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y], [tensor])), tmp_path / "a.onnx")
        return read_graph_content(tmp_path / "a.onnx").sha256

    assert digest(raw=True) == digest(raw=False)


def test_weights_in_another_file_are_the_same(tmp_path):
    inside = foreign_network(tmp_path / "a.onnx")
    outside = foreign_network(tmp_path / "b.onnx", external=True)
    assert read_graph_content(inside) == read_graph_content(outside)
    data = bytearray((tmp_path / "b.onnx.data").read_bytes())
    data[1] ^= 1
    (tmp_path / "b.onnx.data").write_bytes(data)
    assert read_graph_content(inside).sha256 != read_graph_content(outside).sha256


def other_weight(model):
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1, *tensor.raw_data[1:]])


def other_attribute(model):
    node = next(node for node in model.graph.node if node.op_type == "AveragePool")
    next(a for a in node.attribute if a.name == "kernel_shape").ints[0] = 3


def other_operation(model):
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"


def other_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 96


def other_opset(model):
    model.opset_import[0].version = 16


def other_output(model):
    model.graph.output.pop()


def tiny(tmp_path, *nodes, sparse=(), functions=(), opset=21, **weights):
    """Digest and precision of `x` -> nodes -> `y`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in "xy")
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions), tmp_path / "tiny.onnx")
    return read_graph_content(tmp_path / "tiny.onnx")


@pytest.mark.parametrize("kept", ["initializer", "attribute"])
def test_sparse_weights_count(kept, tmp_path):
    def content(value, place):
        values = helper.make_tensor("w", TensorProto.FLOAT, [1], [value])
        sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [place]), [4])
        add = helper.make_node("Add", ["x", "w"], ["y"])
        if kept == "initializer":
            return tiny(tmp_path, add, sparse=[sparse])
        return tiny(tmp_path, helper.make_node("Constant", [], ["w"], sparse_value=sparse), add)

    assert content(1.0, 2) == content(1.0, 2)
    assert len({content(*other).sha256 for other in ((1.0, 2), (2.0, 2), (1.0, 3))}) == 3


def test_packed_weights_count(tmp_path):
    def content(value):
        w = helper.make_tensor("w", TensorProto.INT4, [2], [value, 1])
        return tiny(
            tmp_path,
            helper.make_node("DequantizeLinear", ["w", "s"], ["v"]),
            helper.make_node("Add", ["x", "v"], ["y"]),
            w=w,
            s=np.float32(1),
        )

    assert content(2).sha256 != content(3).sha256


_QUANTIZE = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
]


@pytest.mark.parametrize("kind", ["INT16", "UINT16", "INT4", "UINT4", "INT8"])
def test_every_quantization_of_values_is_found(kind, tmp_path):
    zero = helper.make_tensor("z", getattr(TensorProto, kind), [], [0])
    assert tiny(tmp_path, *_QUANTIZE, s=np.float32(1), z=zero).precision == "int8"


def test_quantization_inside_of_operations_is_found(tmp_path):
    opsets = [helper.make_opsetid("", 21)]
    function = helper.make_function("own", "Quantized", ["x", "s", "z"], ["y"], _QUANTIZE, opsets)
    call = helper.make_node("Quantized", ["x", "s", "z"], ["y"], domain="own")
    assert tiny(tmp_path, call, functions=[function], s=np.float32(1), z=np.int8(0)).precision == "int8"
    product = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")
    assert tiny(tmp_path, product, w=np.zeros((4, 4), np.int8), s=np.float32(1)).precision == "int8"


@pytest.mark.parametrize(
    ("operation", "taken"), [("Cast", ["w"]), ("Cast", []), ("Identity", []), ("QuantizeLinear", [])]
)
def test_nodes_that_lack_something_are_told_in_one_line(operation, taken, tmp_path):
    with pytest.raises(ModelFileError, match="is no complete ONNX file"):
        tiny(tmp_path, helper.make_node(operation, taken, ["y"]), w=np.float32(1))


@pytest.mark.parametrize(
    "change",
    [other_weight, other_attribute, other_operation, other_size, other_opset, other_output],
    ids=lambda f: f.__name__,
)
def test_another_graph(change, net):
    assert read_graph_content(saved(net, change)).sha256 != read_graph_content(net).sha256


def test_branches_count(tmp_path):
    """What stands inside of If reads values of the graph around it."""

    def digest(factor):
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
        w = numpy_helper.from_array(np.array([factor], np.float32), "w")
        yes = numpy_helper.from_array(np.array(True), "yes")
        branch = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "b", [], [y])
        node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
        onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y], [w, yes])), tmp_path / "if.onnx")
        return read_graph_content(tmp_path / "if.onnx").sha256

    assert digest(1.0) == digest(1.0)
    assert digest(1.0) != digest(2.0)


class Pictures(CalibrationDataReader):
    def __init__(self, name, size):
        self.name, self.left = (
            name,
            [np.random.default_rng(i).normal(size=(1, 3, *size)).astype(np.float32) for i in range(2)],
        )

    def get_next(self):
        return {self.name: self.left.pop()} if self.left else None


def by_a_foreign_tool(how, source, target, name="image", size=(64, 64)):
    """What people do to a file after its export."""
    if how == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
    elif how == "fp16":
        onnx.save(convert_float_to_float16(onnx.load(source), disable_shape_infer=True), target)
    else:
        form = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}[how]
        quantize_static(source, target, Pictures(name, size), quant_format=form, per_channel=True)
    return target


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "precision"), [("dynamic", "int8"), ("qdq", "int8"), ("qoperator", "int8"), ("fp16", "fp16")]
)
def test_precision_is_read_from_the_graph(how, precision, net, tmp_path):
    made = by_a_foreign_tool(how, net, tmp_path / "made.onnx", "input", (48, 80))
    assert read_graph_content(net).precision == "fp32"
    assert read_graph_content(made).precision == precision


def weights_in_bytes(model):
    """Weights alone are quantized: they are widened when the file is loaded, and it computes in FP32."""
    tensor = next(t for t in model.graph.initializer if t.name == "head.weight")
    values = numpy_helper.to_array(tensor)
    scale = np.float32(np.abs(values).max() / 127)
    stored = numpy_helper.from_array(np.rint(values / scale).astype(np.int8), "head.int8")
    model.graph.initializer.remove(tensor)
    model.graph.initializer.extend([stored, numpy_helper.from_array(scale, "head.scale")])
    node = helper.make_node("DequantizeLinear", ["head.int8", "head.scale"], ["head.weight"])
    model.graph.node.insert(0, node)


def stored_as_fp16(model):
    tensor = next(t for t in model.graph.initializer if t.name == "features.weight")
    half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), "features.half")
    model.graph.initializer.remove(tensor)
    model.graph.initializer.append(half)
    model.graph.node.insert(0, helper.make_node("Cast", ["features.half"], ["features.weight"], to=TensorProto.FLOAT))


@pytest.mark.parametrize(("change", "store"), [(weights_in_bytes, "fp32"), (stored_as_fp16, "fp16")])
def test_what_is_only_stored_small_computes_in_fp32(change, store, net):
    content = read_graph_content(saved(net, change))
    assert (content.precision, content.store) == ("fp32", store)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32", "graph": "tensor"},
        {"precision": "fp16", "graph": "tensor"},
        {"precision": "fp32", "graph": "frame"},
    ],
)
def test_our_own_files_say_what_their_graph_says(options):
    path = exported(**options)
    manifest, content = read_manifest(path), read_graph_content(path)
    assert (content.sha256, content.precision) == (manifest.graph_sha256, manifest.precision)
    assert not manifest.changed


@pytest.fixture
def ours(tmp_path):
    """Our FP32 file without the record beside it, as it is handed on."""
    path = tmp_path / "ours.onnx"
    path.write_bytes(exported(precision="fp32", graph="tensor").read_bytes())
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["dynamic", "qdq", "qoperator"])
def test_a_file_that_was_quantized_after_export_is_int8(how, ours, tmp_path, cpu):
    """Metadata still says FP32; on a CPU where such sums saturate it is refused like every INT8 file."""
    made = by_a_foreign_tool(how, ours, tmp_path / "quantized.onnx")
    assert METADATA_KEY in {entry.key for entry in onnx.load(made).metadata_props}
    manifest = read_manifest(made)
    assert (manifest.precision, manifest.changed, manifest.parity) == ("int8", True, None)
    told = CliRunner().invoke(app, ["inspect", str(made)]).stdout
    assert "changed after export" in told
    assert "by " not in told.split("changed after export", 1)[1].split("\n", 1)[0]
    assert "proven on" not in told
    cpu("avx2")
    with pytest.raises(BackendUnavailable, match="int8 on the CPU"):
        open_model(made)


@needs_int8
@pytest.mark.filterwarnings("ignore")
def test_a_quantized_file_still_runs_where_it_may(ours, tmp_path):
    made = by_a_foreign_tool("qdq", ours, tmp_path / "quantized.onnx")
    with open_model(made) as model, open_model(ours) as reference:
        assert "int8" in model.backend.description
        image = discs()[0].image_HWC
        assert np.abs(model.mask(image) - reference.mask(image)).mean() < 0.5


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_was_converted_to_fp16_is_fed_by_its_graph(ours, tmp_path):
    made = by_a_foreign_tool("fp16", ours, tmp_path / "half.onnx")
    manifest = read_manifest(made)
    assert (manifest.precision, manifest.input.dtype, manifest.changed) == ("fp16", "float16", True)
    image = discs()[0].image_HWC
    with open_model(made) as model, open_model(ours) as reference:
        np.testing.assert_allclose(model.mask(image), reference.mask(image), atol=0.02)


def test_a_file_that_was_written_again_is_the_same(ours):
    with_record = manifest_path(ours)
    with_record.write_text(manifest_path(exported(precision="fp32", graph="tensor")).read_text())
    want = read_manifest(ours)
    assert saved(ours, by_onnx_ir).rename(ours) == ours
    found = read_manifest(ours)
    assert (found.changed, found.parity) == (False, want.parity)


def fixed_batch(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1


def test_a_file_whose_batch_was_fixed_still_takes_batches(ours):
    made = saved(ours, fixed_batch)
    manifest = read_manifest(made)
    assert (manifest.input.shape[0], manifest.precision, manifest.changed) == (1, "fp32", True)
    with open_model(made) as model:
        prepared = model.prepare(discs()[0].image_HWC)
        assert len(model.infer([prepared, prepared])) == 2


def test_a_file_that_is_fed_otherwise_is_refused(ours):
    def two_inputs(model):
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))

    with pytest.raises(ModelFileError, match="was changed after its export and has"):
        read_manifest(saved(ours, two_inputs))


def without_hash(path):
    """As files were exported before graphs had digests."""
    model = onnx.load(path)
    text = replace(read_manifest(path), graph_sha256="", onnx_sha256="").to_json()
    text = "\n".join(line for line in text.split("\n") if '"graph_sha256"' not in line and '"changed"' not in line)
    helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_older_files_load_and_their_quantized_copies_are_found_too(ours, tmp_path):
    older = without_hash(ours)
    manifest = read_manifest(older)
    assert (manifest.graph_sha256, manifest.changed, manifest.precision) == ("", False, "fp32")
    assert manifest.parity is not None
    assert read_manifest(by_a_foreign_tool("qdq", older, tmp_path / "quantized.onnx")).precision == "int8"
    half = read_manifest(by_a_foreign_tool("fp16", older, tmp_path / "half.onnx"))
    assert (half.precision, half.changed, half.parity) == ("fp16", True, None)
