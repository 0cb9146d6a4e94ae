"""Every form a checkpoint is found in loads; everything else is refused in one line that says what was found."""

import pickle

import pytest
import torch

from basnet_torch.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_resnet34,
    model_from_checkpoint,
    read_file,
    save_authors_checkpoint,
    save_checkpoint,
)
from basnet_torch.errors import CheckpointError
from basnet_torch.keymap import authors_from_ours
from basnet_torch.model import BASNet
from basnet_torch.spec import Postprocess, Preprocess


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
}


@pytest.mark.parametrize("form", WILD)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "torch 0.4 format"])
def test_wild_forms_load(small_model, tmp_path, form, legacy):
    path = tmp_path / "basnet.pth"
    state = authors_from_ours(small_model.state_dict())
    torch.save(WILD[form](state), path, _use_new_zipfile_serialization=not legacy)
    assert same_outputs(small_model, path)


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
    "code": (lambda p: p.write_bytes(pickle.dumps({"a": Code()})), "never run here|no complete PyTorch"),
    "code in zip": (lambda p: torch.save({"a": Code()}, p), "never run here"),
    "list": (lambda p: torch.save([torch.zeros(1)], p), "holds a list"),
    "no tensors": (lambda p: torch.save({"epoch": 1}, p), "'epoch' but no tensors"),
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
    """A randomly initialised network of the paper's size: same 517 entries, bit-equal outputs after the round trip."""
    torch.manual_seed(0)
    model = BASNet(64).eval()
    save_authors_checkpoint(tmp_path / "basnet.pth", model.state_dict())
    checkpoint = load_checkpoint(tmp_path / "basnet.pth", width=64)
    assert len(checkpoint.state) == 517
    assert same_outputs(model, tmp_path / "basnet.pth")


def test_damaged_safetensors_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pth")


def test_wrong_width_says_both(small_model, tmp_path):
    save_authors_checkpoint(tmp_path / "a.pth", small_model.state_dict())
    with pytest.raises(CheckpointError, match="of width 4, not 64"):
        load_checkpoint(tmp_path / "a.pth", width=64)


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
