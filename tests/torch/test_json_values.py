"""JSON values: files of an earlier version load, and a key, type or value that does not fit is one line naming it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from basnet_benchmarks.gate import Baseline
from basnet_benchmarks.results import read_result, terminal
from basnet_runtime.manifest import Manifest
from basnet_torch.errors import UsageError
from basnet_torch.json_values import from_plain, to_plain
from basnet_torch.spec import Preprocess
from basnet_torch.train.config import TrainConfig

# Written by commit e93c003: an export and an engine of a network of width 4, a run of one step, its baseline, a report.
FILES = Path(__file__).parents[1] / "data" / "written_by_e93c003"


def plain(name):
    return json.loads((FILES / name).read_text(encoding="utf-8"))


def without(values, key):
    return {name: value for name, value in values.items() if name != key}


def check_grown(written, text):
    """What stood there stands there still; what was added has its default."""
    new, old = json.loads(written), json.loads(text)
    later = {"stride": new["preprocess"]["stride"], "resample": "bilinear"}
    assert new["preprocess"] == {**old["preprocess"], **later}
    added = {"activation": "none", "changed": False, "encoder": "resnet34", "graph_sha256": "", "refused": {}}
    assert new == {**old, **added, "preprocess": new["preprocess"]}


def test_a_manifest_of_an_onnx_file_loads():
    text = (FILES / "small.onnx.json").read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    assert (manifest.width, manifest.parity, manifest.engine) == (4, None, None)
    assert manifest.input.shape == (None, 3, 64, 64)
    check_grown(manifest.to_json(), text)


def test_a_manifest_of_a_plan_loads_with_its_engine():
    text = (FILES / "small.plan.json").read_text(encoding="utf-8")
    engine = Manifest.from_json(text).engine
    assert (engine.flavor, engine.plan_bytes) == ("rtx", 3_036_844)
    assert engine.profiles[0].holds((2, 3, 64, 64))
    assert not engine.profiles[0].holds((3, 3, 64, 64))
    check_grown(Manifest.from_json(text).to_json(), text)


def test_a_training_configuration_loads():
    saved = plain("config.json")["config"]
    config = TrainConfig.read(saved)
    assert (config.width, config.crop_scale, config.encoder) == (4, (0.7, 1.0), "resnet34")
    assert saved.items() <= to_plain(config).items()


def test_a_baseline_loads_and_is_written_as_it_was():
    baseline = Baseline.read(FILES / "baseline.json")
    assert baseline.folder == FILES
    assert baseline.rows[0].speed.value > 0
    assert json.loads(baseline.to_json()) == plain("baseline.json")


def test_a_result_loads_and_is_shown():
    assert "random:4" in terminal(read_result(FILES / "latency.json"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"color": "blue"}, "unknown fields color; this version knows arch, "),
        ({"width": "4"}, "width is '4'; it must be int"),
        ({"width": 4.5}, "width is 4.5; it must be int"),
        ({"channels_last": 1}, "channels_last is 1; it must be bool"),
        ({"lr": None}, "lr is None; it must be float"),
        ({"lr": math.nan}, "lr is nan; it must be finite"),
        ({"crop_scale": [0.7]}, "crop_scale is [0.7]; it must be array of length 2"),
        ({"crop_scale": [0.7, "all"]}, "crop_scale[1] is 'all'; it must be float"),
        ({"crop_scale": [0.7, -math.inf]}, "crop_scale[1] is -inf; it must be finite"),
        ({"arch": "resnet"}, "arch is 'resnet'; it must be one of basnet, basnet-coarse, fcn, segnet, unet, hed"),
        ({"size": 65}, "size: size 65x65 does not fit"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
    ],
)
def test_what_does_not_fit_a_configuration_is_named(change, line):
    with pytest.raises(UsageError) as caught:
        TrainConfig.read({**plain("config.json")["config"], **change})
    assert str(caught.value).startswith(f"config: {line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rows": [{"device": "cpu"}]}, "rows[0].name is missing"),
        ({"devices": {"cpu": ["onnxruntime"], "cuda": [3]}}, "devices.cuda[0] is 3; it must be str"),
        ({"devices": {"cpu": [], "cuda": "all"}}, "devices.cuda is 'all'; it must be array"),
        ({"devices": {}}, "devices is empty; name at least one with its backends"),
        ({"rounds": -1}, "rounds is -1; it must be a number, 0 to time nothing"),
        ({"mask_bend": 0.1}, "unknown fields mask_bend; this version knows reference, "),
        ({"folder": "elsewhere"}, "folder is 'elsewhere'; it must be Path"),
        ({"format": 2}, "its format is not 1"),
        ({"speed_band": math.nan}, "speed_band is nan; it must be finite"),
    ],
)
def test_what_does_not_fit_a_baseline_is_named(change, line, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps({**plain("baseline.json"), **change}))
    with pytest.raises(UsageError) as caught:
        Baseline.read(path)
    assert str(caught.value) == f"baseline {path}: is no baseline of basnet-bench gate ({line})" or (
        line.endswith(", ") and line in str(caught.value)
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"parity": {"max_abs": math.nan}}, "rows[0].parity.max_abs is nan; it must be finite"),
        ({"parity": {"max_abs": 0.5, "flips": "few"}}, "rows[0].parity.flips is 'few'; it must be float"),
        ({"speed": {"value": 2.0, "low": 1.0}}, "rows[0].speed.high is missing"),
        ({"speed": {"value": 2.0, "low": None, "high": None, "mid": 1}}, "rows[0].speed: unknown fields mid; "),
    ],
)
def test_what_does_not_fit_a_row_is_named(change, line, tmp_path):
    values = plain("baseline.json")
    values["rows"][0] |= change
    path = tmp_path / "b.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError) as caught:
        Baseline.read(path)
    assert f"({line}" in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_another_kind_of_value_is_refused(value):
    with pytest.raises(UsageError, match="it must be object"):
        TrainConfig.read(value)


@pytest.mark.parametrize("field", ["height", "mean"])
def test_a_recipe_lacks_nothing(field):
    """A default for a value that a file forgot would feed its network wrongly."""
    with pytest.raises(ValueError, match=f"missing fields {field}; this version reads height, "):
        from_plain(without(to_plain(Preprocess(height=64)), field), Preprocess)


def test_what_json_cannot_hold_is_not_written():
    manifest = Manifest.from_json((FILES / "small.plan.json").read_text(encoding="utf-8"))
    slow = replace(manifest, engine=replace(manifest.engine, build_seconds=math.inf))
    with pytest.raises(ValueError, match=r"^engine.build_seconds is inf; it must be finite$"):
        slow.to_json()
