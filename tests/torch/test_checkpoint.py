"""Every form a checkpoint is found in loads; everything else is refused in one line that says what was found."""

import argparse
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from basnet_torch.checkpoint import (
    Checkpoint,
    load_checkpoint,
    model_from_checkpoint,
    read_file,
    save_authors_checkpoint,
    save_checkpoint,
)
from basnet_torch.errors import CheckpointError
from basnet_torch.model.basnet import BASNet
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.pretrained import load_resnet34
from basnet_torch.weights.keymap import authors_from_ours


def same_outputs(model, path):
    loaded = model_from_checkpoint(load_checkpoint(path))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        return all(torch.equal(a, b) for a, b in zip(model(image), loaded(image), strict=True))


def test_round_trip_through_the_authors_names_is_bit_equal(small_model, tmp_path):
    save_authors_checkpoint(tmp_path / "basnet.pth", small_model.state_dict())
    assert "refunet.conv_d4.weight" in torch.load(tmp_path / "basnet.pth", weights_only=True)
    checkpoint = load_checkpoint(tmp_path / "basnet.pth")
    assert checkpoint.origin == "authors"
    assert (checkpoint.preprocess.scale, checkpoint.postprocess.stretch) == ("image_max", True)
    assert same_outputs(small_model, tmp_path / "basnet.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_our_checkpoint_keeps_weights_recipe_and_metadata(small_model, tmp_path, suffix):
    saved = Checkpoint(
        width=4,
        state=small_model.state_dict(),
        preprocess=Preprocess(height=224, width=192),
        postprocess=Postprocess(stretch=True, empty_below=0.2),
        origin="basnet-deploy",
        metadata={"step": 3, "scores": {"max_f": 0.5}},
    )
    save_checkpoint(tmp_path / f"ours{suffix}", saved)
    loaded = load_checkpoint(tmp_path / f"ours{suffix}")
    assert (loaded.preprocess, loaded.postprocess) == (saved.preprocess, saved.postprocess)
    assert loaded.metadata == saved.metadata
    assert same_outputs(small_model, tmp_path / f"ours{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [f"ours{suffix}"]


def without_counters(state):
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def other(state):
    return {name: value + 1 for name, value in state.items()}


WILD = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s},
    "net": lambda s: {"net": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"lr": 1.0}},
    "module prefix": lambda s: {f"module.{k}": v for k, v in s.items()},
    "wrapped and prefixed": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "no counters": without_counters,
    "tensor beside the wrapper": lambda s: {"model": s, "best_loss": torch.tensor(0.3)},
    "scalar beside": lambda s: {**s, "epoch": 7},
    "torch.compile": lambda s: prefixed("_orig_mod.", s),
    "compiled under DataParallel": lambda s: prefixed("module._orig_mod.", s),
    "compiled in part": lambda s: {name.replace("refunet.", "refunet._orig_mod."): v for name, v in s.items()},
    "Lightning": lambda s: {
        "state_dict": {**prefixed("model.", s), "loss.window": torch.ones(11)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning with an average": lambda s: {
        "state_dict": {**prefixed("model.", other(s)), **prefixed("ema_model.module.", s)}
    },
    "BasicSR": lambda s: {"params": other(s), "params_ema": s},
    "timm": lambda s: {
        "state_dict": other(s),
        "state_dict_ema": s,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(0.9),
    },
    "an average of a part": lambda s: {"model": s, "ema": {"inconv.weight": s["inconv.weight"] + 1}},
    "GAN": lambda s: {**prefixed("generator.net.", s), **prefixed("discriminator.", {"conv.weight": torch.zeros(3)})},
    "AveragedModel": lambda s: {"swa_model": {"n_averaged": torch.tensor(3), **prefixed("module.", s)}},
    "deep": lambda s: {"models": {"saliency": {"weights": s}}, "step": torch.tensor(7)},
    "counters of a profiler": lambda s: {**s, "total_ops": torch.zeros(1), "inconv.total_params": torch.zeros(1)},
    "scalar among the weights": lambda s: {**s, "temperature": torch.tensor(0.5)},
    "counters of another type": lambda s: {
        name: v.reshape(1).float() if name.endswith("num_batches_tracked") else v for name, v in s.items()
    },
}
SAID = {
    "state_dict": "",
    "torch.compile": "weights taken from the file itself, prefix '_orig_mod.' removed\n",
    "Lightning": "weights taken from state_dict, prefix 'model.' removed\n",
    "BasicSR": "weights taken from params_ema (also there: params)\n",
    "timm": "weights taken from state_dict_ema (also there: state_dict)\n",
    "an average of a part": "weights taken from model\n",
}


@pytest.mark.parametrize("form", WILD)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch 0.4 format"])
def test_wild_forms_load(small_model, tmp_path, form, legacy):
    path = tmp_path / "basnet.pth"
    state = authors_from_ours(small_model.state_dict())
    torch.save(WILD[form](state), path, _use_new_zipfile_serialization=not legacy)
    assert same_outputs(small_model, path)


@pytest.mark.parametrize("form", SAID)
def test_what_was_taken_is_said_once(small_model, tmp_path, form, capsys):
    path = tmp_path / "basnet.pth"
    torch.save(WILD[form](authors_from_ours(small_model.state_dict())), path)
    for _ in range(2):
        load_checkpoint(path)
    assert capsys.readouterr().err == (f"{path}: {SAID[form]}" if SAID[form] else "")


def test_our_own_names_are_found_under_a_prefix_too(small_model, tmp_path):
    torch.save({"state_dict": prefixed("model.", small_model.state_dict())}, tmp_path / "ours.ckpt")
    assert load_checkpoint(tmp_path / "ours.ckpt").origin == "unknown"
    assert same_outputs(small_model, tmp_path / "ours.ckpt")


def test_files_are_read_by_content_whatever_they_are_called(small_model, tmp_path):
    state = authors_from_ours(small_model.state_dict())
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c")
    for name in ("a.pth", "b.safetensors", "c"):
        assert same_outputs(small_model, tmp_path / name)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch 0.4 format"])
def test_a_newer_pickle_says_what_it_is(small_model, tmp_path, protocol, legacy):
    """Of protocol 3 torch reads all that a state dict needs, of 4 and 5 nothing."""
    path = tmp_path / "basnet.pth"
    state = authors_from_ours(small_model.state_dict())
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    if protocol == 3:
        assert same_outputs(small_model, path)
        return
    with pytest.raises(CheckpointError, match=rf"saved with pickle protocol {protocol}, .*torch\.save\(torch\.load\("):
        load_checkpoint(path)


def test_half_precision_loads_as_float32(small_model, tmp_path):
    state = authors_from_ours(small_model.state_dict())
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.pth")
    loaded = load_checkpoint(tmp_path / "half.pth").state
    assert loaded["refine.input.weight"].dtype == torch.float32
    torch.testing.assert_close(loaded["refine.input.weight"], state["refunet.conv0.weight"], rtol=1e-3, atol=1e-3)


class Code:
    def __reduce__(self):
        return print, ("this must never run",)


def write_truncated(path):
    torch.save(BASNet(4).state_dict(), path)
    path.write_bytes(path.read_bytes()[:20000])


def write_truncated_legacy(path):
    torch.save(BASNet(4).state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20000])


def write_torchscript(path):
    """What tells such an archive from a state dict's: torch deprecates the functions that write a real one."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("version", b"3"), ("data.pkl", b"\x80\x02}."), ("constants.pkl", b"\x80\x02).")):
            archive.writestr(f"program/{name}", content)


def write_not_finite(path):
    state = BASNet(4).state_dict()
    state["refine.input.weight"].fill_(float("nan"))
    torch.save(state, path)


REFUSED = {
    "web page": (lambda p: p.write_text("\n <!DOCTYPE html><title>Sign in</title>"), "is a web page"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "truncated": (write_truncated, "cut short"),
    "truncated torch 0.4": (write_truncated_legacy, "no complete PyTorch checkpoint"),
    "text": (lambda p: p.write_text("hello"), "is no PyTorch checkpoint"),
    "picture": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99)), "is no PyTorch checkpoint"),
    "numbers for names": (lambda p: torch.save({0: torch.zeros(1)}, p), "its tensors have no names"),
    "lfs pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "code": (lambda p: p.write_bytes(pickle.dumps({"a": Code()})), "is a plain pickle, not a file of torch.save"),
    "code in protocol 4": (lambda p: torch.save({"a": Code()}, p, pickle_protocol=4), "pickle protocol 4"),
    "TorchScript": (write_torchscript, "is a TorchScript program"),
    "code in zip": (lambda p: torch.save({"a": Code()}, p), r"objects \(builtins.print\), which are never run here"),
    "list": (lambda p: torch.save([torch.zeros(1)], p), "holds a list"),
    "no tensors": (lambda p: torch.save({"epoch": 1}, p), "'epoch' but no tensors"),
    "no entries": (lambda p: torch.save({}, p), "holds nothing; save"),
    "folder": (lambda p: p.mkdir(), "is a folder; give"),
    "foreign": (lambda p: torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, p), "another network than BASNet"),
    "newer format": (lambda p: torch.save({"format": "basnet-deploy/2"}, p), "update basnet-deploy"),
    "stem is no convolution": (
        lambda p: torch.save({"predict.encoder.stem.conv.weight": torch.tensor(1.0)}, p),
        "another network than BASNet",
    ),
    "not finite": (write_not_finite, "refine.input.weight holds values that are not finite"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused_in_one_line(tmp_path, form, capsys):
    write, message = REFUSED[form]
    path = tmp_path / "basnet.pth"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "this must never run" not in capsys.readouterr().out


def test_storing_as_fp16_refuses_what_it_cannot_hold(small_model, tmp_path):
    state = small_model.state_dict()
    state["refine.bottom.norm.running_var"].fill_(1e6)
    checkpoint = Checkpoint(
        width=4, state=state, preprocess=Preprocess(), postprocess=Postprocess(), origin="basnet-deploy"
    )
    with pytest.raises(CheckpointError, match="not finite in float16"):
        save_checkpoint(tmp_path / "a.safetensors", checkpoint, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_the_origin_survives(small_model, tmp_path):
    save_authors_checkpoint(tmp_path / "a.pth", small_model.state_dict())
    save_checkpoint(tmp_path / "b.safetensors", load_checkpoint(tmp_path / "a.pth"))
    assert load_checkpoint(tmp_path / "b.safetensors").origin == "authors"


@pytest.mark.slow
def test_width_64_under_the_authors_names_loads_strictly(tmp_path):
    """A randomly initialized network of the paper's size: same 517 entries, bit-equal outputs after the round trip."""
    torch.manual_seed(0)
    model = BASNet(64).eval()
    save_authors_checkpoint(tmp_path / "basnet.pth", model.state_dict())
    checkpoint = load_checkpoint(tmp_path / "basnet.pth")
    assert (checkpoint.width, len(checkpoint.state)) == (64, 517)
    assert same_outputs(model, tmp_path / "basnet.pth")


def test_damaged_safetensors_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pth")


def test_missing_extra_and_misshapen_entries_are_named(small_model, tmp_path):
    state = small_model.state_dict()
    del state["refine.input.bias"]
    state["classifier.weight"] = torch.zeros(1)
    state["refine.output.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "a.pth")
    for part in ("refine.input.bias is missing", "classifier.weight is not of this", "refine.output.bias is (3,)"):
        assert part in str(caught.value)


def resnet34_from(model):
    """A state dict in torchvision's names, filled from the encoder, with stem and classifier beside."""
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}
    for name, value in model.predict.encoder.state_dict().items():
        if name[:6] in ("stage1", "stage2", "stage3", "stage4"):
            renamed = name.replace("stage", "layer").replace("norm", "bn").replace("shortcut", "downsample")
            state[renamed] = torch.randn_like(value) if value.is_floating_point() else value + 5
    return state


def test_encoder_starts_from_resnet34(tmp_path):
    model = BASNet(8)
    state = resnet34_from(model)
    assert {"layer2.0.downsample.1.running_var", "layer3.5.bn2.weight"} <= state.keys()
    torch.save(state, tmp_path / "resnet34.pth")
    before = model.predict.encoder.stage5[0].conv1.weight.clone()
    taken = load_resnet34(model, tmp_path / "resnet34.pth")
    assert taken == len(state) - 2
    assert torch.equal(model.predict.encoder.stage3[5].conv2.weight, state["layer3.5.conv2.weight"])
    assert torch.equal(model.predict.encoder.stage5[0].conv1.weight, before)


def test_resnet34_of_another_width_is_refused(tmp_path):
    torch.save(resnet34_from(BASNet(8)), tmp_path / "resnet34.pth")
    with pytest.raises(CheckpointError, match="width 64"):
        load_resnet34(BASNet(4), tmp_path / "resnet34.pth")


def test_the_old_format_cut_anywhere_is_one_line(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in range(1, len(whole), 3):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"^[^\n]*cut\.pth: [^\n]*$"):
            read_file(tmp_path / "cut.pth")
