"""Adopting other people's networks: every form of graph runs with the right masks, wrong guesses are one line."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from basnet_export.adopt import PRESETS
from basnet_export.cli import app
from basnet_runtime.backends.onnx_reference import OnnxReferenceBackend
from basnet_runtime.backends.onnxruntime import open_onnxruntime
from basnet_runtime.command.cli import main as run_main
from basnet_runtime.manifest import adaptation_for, manifest_path, read_manifest, sha256_of
from basnet_runtime.media.image.pictures import read_picture, write_picture
from basnet_runtime.onnx_file.adapt import adapted
from basnet_runtime.onnx_file.header import read_onnx_header
from basnet_runtime.open import open_model
from basnet_torch.errors import BackendUnavailable, ModelFileError, UsageError
from basnet_torch.spec import Preprocess
from tests.foreign import expected_map, foreign_network
from tests.models import disc_folder, discs, needs_openvino_plugin

RECIPE = ("--mean", "0.5,0.4,0.3", "--std", "0.5", "--scale", "255")
PREPARED = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.5, 0.5), "stride": 1}
IMAGE = discs()[0].image_HWC


def adopt(path, *arguments):
    result = CliRunner().invoke(app, ["adopt", *map(str, (path, *arguments, "--pictures", disc_folder()))])
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit), result.exception
    return result


FORMS = {
    **{f"opset {opset}": {"opset": opset} for opset in range(9, 25)},
    "opset 9, weights as inputs": {"opset": 9, "legacy_inputs": True},
    "free size": {"size": None},
    "free batch": {"batch": None},
    "free size and batch": {"size": None, "batch": None, "opset": 20},
    "seven outputs": {"side_outputs": 6},
    "one output": {"side_outputs": 0},
    "FP16 inputs": {"dtype": "float16"},
    "FP16, opset 11, free": {"dtype": "float16", "opset": 11, "size": None, "batch": None},
    "N,H,W": {"squeezed": True},
    "N,H,W, opset 12, free": {"squeezed": True, "opset": 12, "size": None, "batch": None},
    "logits": {"sigmoid": False},
    "FP16 logits": {"sigmoid": False, "dtype": "float16"},
    "nodes without names": {"names": False},
    "weights in another file": {"external": True},
}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_known_mask(form, backend, tmp_path):
    path = foreign_network(tmp_path / "net.onnx", **form)
    before = sha256_of(path)
    options = () if form.get("size", 1) else ("--size", "48x80")
    options += () if form.get("sigmoid", True) else ("--activation", "sigmoid")
    result = adopt(path, *RECIPE, *options)
    assert result.exit_code == 0, result.stderr
    assert "adopted, not BASNet" in result.stdout
    assert sha256_of(path) == before  # outputs are cut in the copy that runs, not in the file
    with open_model(path, backend=backend) as model:
        prepared = Preprocess(height=48, width=80, **PREPARED).apply(IMAGE)
        found = model.infer([prepared, prepared[:, ::-1].copy()])
        assert len(found) == 2
        slack = 5e-3 if form.get("dtype") == "float16" else 1e-5
        for raw, fed in zip(found, (prepared, prepared[:, ::-1]), strict=True):
            np.testing.assert_allclose(raw.reshape(48, 80), expected_map(fed), atol=slack)
        assert model.submit([prepared, prepared]).result().shape == found.shape
        assert model.mask(IMAGE).shape == IMAGE.shape[:2]
    with open_model(path, backend=backend) as again:  # from what was kept of the first start
        np.testing.assert_array_equal(again.infer([prepared]), found[:1])


@pytest.mark.parametrize(
    ("form", "options", "code", "reason"),
    [
        ({}, ("--output", "d9"), 2, "has no such output. Give one of d0, d1"),
        ({}, ("--size", "64"), 2, "size 64x64: the graph takes input float32 1x3x48x80. Leave --size out"),
        ({"size": None}, (), 2, "any size. Give --size"),
        ({"size": None}, ("--size", "0"), 2, "must be at least 1x1"),
        ({"last": True}, (), 1, "channels last; must be N,3,H,W"),
        ({"last": True, "batch": None}, (), 1, "channels last; must be N,3,H,W"),
        ({"dtype": "uint8"}, (), 1, "must be float32 or float16"),
        ({"batch": 4}, (), 1, "batch must be 1 or free"),
        ({"sigmoid": False}, (), 1, "must be 0..1. Add --activation sigmoid"),
        ({}, ("--output", "d1"), 1, "must be 0..1"),
        ({}, ("--activation", "sigmoid"), 1, "is 0..1 already"),
        ({"gain": float("nan")}, (), 1, "is not finite on a photograph"),
        ({}, ("--mean", "1,2"), 2, "give one number, or red,green,blue"),
        ({}, ("--std", "0"), 2, "must be above 0"),
        ({}, ("--scale", "256"), 2, "scale"),
        ({}, ("--preset", "sam"), 2, "preset"),
        ({}, ("--activation", "softmax"), 2, "activation"),
    ],
)
def test_a_wrong_guess_is_one_line(form, options, code, reason, tmp_path):
    path = foreign_network(tmp_path / "net.onnx", **form)
    result = adopt(path, *RECIPE, *options)
    assert (result.exit_code, reason in " ".join(result.stderr.split())) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert not manifest_path(path).exists()


def with_graph(path, change):
    model = onnx.load(foreign_network(path))
    change(model.graph)
    onnx.save(model, path)
    return path


def second_input(graph):
    graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))


def two_channels(graph):
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2


def no_axes(graph):
    graph.input[0].type.tensor_type.ClearField("shape")


def channels_behind(graph):
    for dim, value in zip(graph.output[0].type.tensor_type.shape.dim, (1, 48, 80, 1), strict=True):
        dim.dim_value = value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (second_input, "must be one picture"),
        (two_channels, "must be one map N,1,H,W"),
        (no_axes, "must be pictures N,3,H,W"),
        (channels_behind, "channels last; must be N,1,H,W"),
    ],
)
def test_graphs_that_make_no_mask_of_a_picture(change, reason, tmp_path):
    result = adopt(with_graph(tmp_path / "net.onnx", change), *RECIPE)
    assert (result.exit_code, reason in result.stderr) == (1, True), result.stderr


def test_a_recipe_must_be_given(tmp_path):
    path = foreign_network(tmp_path / "net.onnx")
    result = adopt(path)
    assert (result.exit_code, "--mean and --std: must be given without --preset" in result.stderr) == (2, True)


def test_files_that_are_no_graph_and_files_that_are_ours(tmp_path):
    (tmp_path / "page.onnx").write_text("<html>sign in</html>")
    assert "is a web page" in adopt(tmp_path / "page.onnx", "--preset", "u2net").stderr
    assert "no such file" in adopt(tmp_path / "none.onnx", "--preset", "u2net").stderr
    ours = onnx.load(foreign_network(tmp_path / "ours.onnx"))
    onnx.helper.set_model_props(ours, {"basnet": "{}"})
    onnx.save(ours, tmp_path / "ours.onnx")
    assert "has its manifest inside" in adopt(tmp_path / "ours.onnx", "--preset", "u2net").stderr
    half = foreign_network(tmp_path / "half.onnx")
    half.write_bytes(half.read_bytes()[:-40])
    assert adopt(half, *RECIPE).exit_code == 1


def test_weights_in_another_file_must_be_there(tmp_path):
    path = foreign_network(tmp_path / "net.onnx", external=True)
    (tmp_path / "net.onnx.data").write_bytes(b"")
    assert adopt(path, *RECIPE).exit_code == 1
    (tmp_path / "net.onnx.data").unlink()
    result = adopt(path, *RECIPE)
    assert (result.exit_code, "keeps weights in net.onnx.data, which is not there" in result.stderr) == (1, True)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_in_another_file_count(backend, tmp_path):
    """What was kept of the first start is not taken for another file's weights."""
    path = foreign_network(tmp_path / "net.onnx", external=True)
    assert adopt(path, *RECIPE).exit_code == 0
    with open_model(path, backend=backend) as model:
        before = model.mask(IMAGE)
    (tmp_path / "other").mkdir()
    other = foreign_network(tmp_path / "other" / "net.onnx", external=True, gain=-12.0)
    assert sha256_of(other) == sha256_of(path)
    other.with_name("net.onnx.data").replace(tmp_path / "net.onnx.data")
    with pytest.raises(ModelFileError, match=r"is not the file that .* describes .*adopt net.onnx ... --overwrite"):
        open_model(path, backend=backend)
    assert adopt(path, *RECIPE, "--overwrite").exit_code == 0
    with open_model(path, backend=backend) as model:
        np.testing.assert_allclose(model.mask(IMAGE), 1 - before, atol=1e-5)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ModelFileError, match="which is not there"):
        open_model(path, backend=backend)


def test_a_manifest_is_replaced_only_when_asked(tmp_path):
    path = foreign_network(tmp_path / "net.onnx")
    assert adopt(path, *RECIPE).exit_code == 0
    kept = manifest_path(path).read_text()
    again = adopt(path, "--mean", "0", "--std", "1")
    assert (again.exit_code, "--overwrite replaces it" in again.stderr) == (2, True)
    assert manifest_path(path).read_text() == kept
    assert adopt(path, "--mean", "0", "--std", "1", "--overwrite").exit_code == 0
    assert read_manifest(path).preprocess.mean == (0, 0, 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, tmp_path):
    path = foreign_network(tmp_path / "net.onnx", size=None, sigmoid=PRESETS[preset].activation == "none", gain=3)
    result = adopt(path, "--preset", preset, "--size", "64", "--json")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads(result.stdout)["manifest"]
    assert (manifest["arch"], manifest["preprocess"]["height"]) == (preset, 64)
    assert manifest["postprocess"]["stretch"] == PRESETS[preset].stretch
    assert manifest["preprocess"]["resample"] == ("lanczos" if preset in ("u2net", "u2netp", "isnet") else "bilinear")


def test_an_option_replaces_the_presets(tmp_path):
    path = foreign_network(tmp_path / "net.onnx")
    result = adopt(
        path, "--preset", "u2net", "--no-stretch", "--scale", "255", "--mean", "0.25", "--resample", "bilinear"
    )
    assert result.exit_code == 0, result.stderr
    manifest = read_manifest(path)
    assert manifest.preprocess == Preprocess(height=48, width=80, mean=(0.25,) * 3, stride=1)
    assert not manifest.postprocess.stretch


def test_inspect_says_what_is_known_and_what_is_not(tmp_path):
    path = foreign_network(tmp_path / "net.onnx", dtype="float16")
    assert adopt(path, *RECIPE).exit_code == 0
    told = CliRunner().invoke(app, ["inspect", str(path)]).stdout
    for part in ("adopted, not BASNet", "fp16, stored as fp16, read from the graph", "not known", "output d0"):
        assert part in told


def test_a_file_that_was_written_again_is_what_was_adopted(tmp_path):
    path = foreign_network(tmp_path / "net.onnx")
    assert adopt(path, *RECIPE).exit_code == 0
    before, graph = read_manifest(path), onnx.load(path)
    graph.producer_name = "another tool"
    onnx.save(graph, path)
    manifest = read_manifest(path)
    assert (before.original, manifest.original, manifest.changed) == (True, True, False)
    assert manifest.onnx_sha256 == sha256_of(path) != before.onnx_sha256


def test_a_changed_file_is_not_what_was_adopted(tmp_path):
    path = foreign_network(tmp_path / "net.onnx")
    assert adopt(path, *RECIPE).exit_code == 0
    foreign_network(path, gain=1)
    result = CliRunner().invoke(app, ["inspect", str(path)])
    assert (result.exit_code, "is not the file that net.onnx.json describes" in result.stderr) == (1, True)
    assert "basnet-export adopt net.onnx ... --overwrite" in result.stderr


def basnet_run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["basnet-run", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        run_main()
    assert not ended.value.code


@pytest.mark.parametrize("kind", ["mask", "cutout", "overlay", "side", "color:#00ff00", "blur"])
def test_basnet_run_makes_every_kind(kind, tmp_path, monkeypatch):
    path = foreign_network(tmp_path / "net.onnx", opset=11)
    assert adopt(path, *RECIPE).exit_code == 0
    write_picture(tmp_path / "a.png", IMAGE)
    basnet_run(monkeypatch, tmp_path / "a.png", "-o", tmp_path / "out", "--model", path, "--kind", kind)
    (made,) = (tmp_path / "out").glob("*.png")
    found = read_picture(made).image_HWC
    assert found.shape[:2] == (IMAGE.shape[0], IMAGE.shape[1] * (2 if kind == "side" else 1))
    if kind == "mask":
        prepared = Preprocess(height=48, width=80, **PREPARED).apply(IMAGE)
        with open_model(path) as model:
            want = model.postprocessor().undecided(expected_map(prepared)[None], *IMAGE.shape[:2])
        np.testing.assert_allclose(found[..., 0] / 255, want, atol=0.6 / 255)


@pytest.mark.parametrize("batch", [1, 3])
def test_basnet_run_makes_a_video(batch, tmp_path, monkeypatch, write_video):
    """A network of batch 1 takes batches too, one picture after the other."""
    path = foreign_network(tmp_path / "net.onnx", side_outputs=6)
    assert adopt(path, *RECIPE).exit_code == 0
    clip = write_video(tmp_path / "clip.mp4", [picture.image_HWC for picture in discs()])
    basnet_run(monkeypatch, clip, "-o", tmp_path / "out", "--model", path, "--batch", batch)
    assert len(list((tmp_path / "out").glob("clip*.mp4"))) == 1


def shrinking_with(path, **attributes):
    """The network, its pooling replaced by a Resize to half, of which OpenVINO reads some attributes only."""
    graph = onnx.load(foreign_network(path, opset=19))
    (pool,) = (node for node in graph.graph.node if node.op_type == "AveragePool")
    half = numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "half")
    graph.graph.initializer.append(half)
    pool.CopyFrom(
        helper.make_node("Resize", [pool.input[0], "", "half"], pool.output, name=pool.name, mode="cubic", **attributes)
    )
    onnx.save(graph, path)
    return path


def test_what_openvino_computes_otherwise_is_not_for_it(tmp_path):
    """Its reader leaves the attribute antialias out: no error, other masks."""
    path = shrinking_with(tmp_path / "net.onnx", antialias=1)
    done = adopt(path, *RECIPE)
    assert (done.exit_code, "not for OpenVINO: its masks differ" in done.stderr) == (0, True)
    assert "mean_abs" in read_manifest(path).refused["openvino"]
    assert "not for openvino" in CliRunner().invoke(app, ["inspect", str(path)]).stdout
    with pytest.raises(UsageError, match=r"net.onnx in openvino: its masks differ .* leave --backend"):
        open_model(path, backend="openvino")
    with open_model(path) as model:
        assert model.backend.name == "onnxruntime"


def test_what_openvino_cannot_read_is_not_for_it(tmp_path):
    path = shrinking_with(tmp_path / "net.onnx", coordinate_transformation_mode="half_pixel_symmetric")
    assert adopt(path, *RECIPE).exit_code == 0
    assert "OpenVINO does not run it" in read_manifest(path).refused["openvino"]


def test_what_openvino_computes_alike_is_for_it(tmp_path):
    path = shrinking_with(tmp_path / "net.onnx")
    assert adopt(path, *RECIPE).exit_code == 0
    assert read_manifest(path).refused == {}
    open_model(path, backend="openvino").close()


@needs_openvino_plugin
def test_it_runs_in_the_provider_too(tmp_path):
    path = foreign_network(tmp_path / "net.onnx", dtype="float16", sigmoid=False, size=None)
    assert adopt(path, *RECIPE, "--size", "48x80", "--activation", "sigmoid").exit_code == 0
    prepared = Preprocess(height=48, width=80, **PREPARED).apply(IMAGE)
    with open_model(path, device="openvino") as model:
        np.testing.assert_allclose(model.infer([prepared])[0, 0], expected_map(prepared), atol=5e-3)


def test_free_channels_are_three_in_the_copy_that_runs(tmp_path):
    """Engines are built of fixed sizes."""
    path = foreign_network(tmp_path / "net.onnx")
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    onnx.save(graph, path)
    assert adopt(path, *RECIPE).exit_code == 0
    with adapted(path, adaptation_for(path, read_manifest(path))) as runnable:
        assert read_onnx_header(runnable).inputs[0].shape == (1, 3, 48, 80)


@pytest.mark.parametrize("error", [IndexError("list index out of range"), KeyError("w")])
def test_what_the_reference_evaluator_raises_is_one_line(error, tmp_path):
    def run(*_):
        raise error

    path = foreign_network(tmp_path / "net.onnx", side_outputs=0)
    backend = OnnxReferenceBackend(SimpleNamespace(run=run), path, "evaluator")
    with pytest.raises(BackendUnavailable, match="evaluator: cannot run this graph"):
        backend.infer(np.zeros((1, 3, 48, 80), np.float32))


def test_the_copy_that_runs_has_one_input_and_one_output(tmp_path):
    """What is cut is never computed: ONNX Runtime runs all outputs that a graph has."""
    path = foreign_network(tmp_path / "net.onnx", side_outputs=6, dtype="float16", sigmoid=False)
    assert adopt(path, *RECIPE, "--activation", "sigmoid").exit_code == 0
    adaptation = adaptation_for(path, read_manifest(path))
    with adapted(path, adaptation) as copy:
        onnx.checker.check_model(onnx.load(copy), full_check=True)
        header = read_onnx_header(copy)
    assert [t.dtype for t in (*header.inputs, *header.outputs)] == ["float32", "float32"]
    with open_onnxruntime(path, adaptation=adaptation, keep=False) as backend:
        assert (backend.input.shape, backend.output.shape) == ((1, 3, 48, 80), (1, 1, 48, 80))
