"""Training runs side by side, from directories as the trainer leaves them: whole, resumed, broken off, or none."""

import json
from importlib.metadata import version
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from basnet_benchmarks.cli import app
from basnet_benchmarks.report import SavedReport, html, markdown, save, values_of
from basnet_benchmarks.runs import compare_runs, read_run
from basnet_torch.config import TrainConfig
from basnet_torch.datasets import PairStore
from basnet_torch.errors import DataError, UsageError
from basnet_torch.trainer import Trainer
from tests.models import draw_discs

CONFIG = {"width": 16, "batch": 8, "loss": "hybrid", "crop_scale": [0.7, 1.0]}


def write_run(folder, *, steps=300, validations=((100, 0.5), (200, 0.7), (300, 0.6)), **options):
    folder.mkdir(parents=True)
    head = {"config": {**CONFIG, **options}, "versions": {"torch": "2.13.0"}, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(head))
    records = [{"kind": "step", "step": i, "loss": 8 / i, "seconds": 0.5} for i in range(1, steps + 1)]
    records += [{"kind": "validation", "step": at, "max_f": f, "mae": 1 - f} for at, f in validations]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_what_differs_and_what_it_gave(tmp_path):
    folders = [write_run(tmp_path / "bce", loss="bce"), write_run(tmp_path / "hybrid")]
    values = values_of(compare_runs(folders))
    assert values["differing"] == ["loss"]
    run = values["runs"][0]
    assert (run["name"], run["parameters"], run["steps"], run["pictures_seen"]) == ("bce", None, 300, 2400)
    assert run["hours"] == pytest.approx(150 / 3600, rel=1e-5)
    assert run["pictures_per_second"] == pytest.approx(16)
    assert (run["best"]["step"], run["best"]["max_f"], run["last"]["max_f"]) == (200, 0.7, 0.6)
    assert run["curves"]["validation"]["step"] == [100, 200, 300]
    assert run["curves"]["steps"]["step"][-1] == 300
    assert len(run["curves"]["steps"]["loss"]) == 120
    text = markdown(compare_runs(folders))
    assert "| bce | bce | - | 300 | 2,400 | 0.04 | 16.0 | 0.7000 | 0.3000 | 200 | 0.6000 | 0.4000 |" in text


def test_versions_and_parameters_are_those_that_training_wrote(tmp_path):
    images, masks = draw_discs(4)
    store = PairStore(tuple(f"disc{i}" for i in range(4)), images, (255 * masks).astype("uint8"))
    options = {"width": 2, "size": 32, "batch": 2, "steps": 2, "warmup": 1, "save_every": 2}
    trainer = Trainer(TrainConfig(**options), store, tmp_path / "run")
    assert len(list(trainer.fit())) == 2
    report = compare_runs([tmp_path / "run"])
    assert report.runs[0].torch == version("torch")
    assert report.runs[0].parameters == sum(value.numel() for value in trainer.model.parameters())
    assert f"run: torch {report.runs[0].torch}, cpu" in markdown(report)


def test_curves_are_drawn_and_one_run_is_enough(tmp_path):
    text = html([compare_runs([write_run(tmp_path / "a")])])
    assert text.count("<svg") == 4
    for unit in ("hours in training steps", "maxF in validation, 0..1", "loss, median"):
        assert unit in text


def test_a_run_that_just_began_has_no_scores(tmp_path):
    folder = write_run(tmp_path / "young", steps=3, validations=())
    report = compare_runs([folder])
    assert "| young | - | 3 | 24 | 0.00 | 16.0 | - | - | - | - | - |" in markdown(report)
    assert html([report]).count("<svg") == 1  # the loss
    empty = write_run(tmp_path / "empty", steps=0, validations=())
    assert "| empty | - | 0 | 0 | 0.00 | - |" in markdown(compare_runs([empty]))
    assert "<svg" not in html([compare_runs([empty])])


def test_steps_done_again_count_once_and_a_broken_last_line_is_left_out(tmp_path):
    folder = write_run(tmp_path / "resumed", steps=4, validations=())
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "step", "step": 3, "loss": 99.0, "seconds": 2.0}) + '\n{"kind": "st')
    run = read_run(folder)
    assert [step["loss"] for step in run.steps] == [8, 4, 99.0, 2]
    assert run.hours * 3600 == pytest.approx(0.5 + 0.5 + 2 + 0.5)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(UsageError, match="has no config"):
        read_run(tmp_path)
    folder = write_run(tmp_path / "broken")
    (folder / "log.jsonl").write_text('{"kind"\n{}\n')
    with pytest.raises(DataError, match="line 1"):
        read_run(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(DataError, match="no config"):
        read_run(folder)
    with pytest.raises(UsageError, match="at least one"):
        compare_runs([])


def test_curves_as_a_file_for_markdown(tmp_path):
    folder, plot = write_run(tmp_path / "a"), tmp_path / "curves.svg"
    assert CliRunner().invoke(app, ["runs", str(folder), "--plot", str(plot)]).exit_code == 0
    text = plot.read_text()
    ET.fromstring(text)
    assert "var(" not in text
    assert "maxF in validation, 0..1" in text
    assert CliRunner().invoke(app, ["runs", str(folder), "--plot", str(tmp_path / "c.png")]).exit_code == 2
    young = write_run(tmp_path / "young", validations=())
    answer = CliRunner().invoke(app, ["runs", str(young), "--plot", str(tmp_path / "c.svg")])
    assert (answer.exit_code, "no curve" in answer.stderr) == (2, True)


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / name / "run") for name in "ab"]
    assert [run.name for run in compare_runs(folders).runs] == [str(folder) for folder in folders]


def test_command_and_its_saved_report(tmp_path):
    folder, output = write_run(tmp_path / "a"), tmp_path / "runs.json"
    answer = CliRunner().invoke(app, ["runs", str(folder), "-o", str(output)])
    assert answer.exit_code == 0, answer.output
    assert "0.7000" in answer.stdout
    saved = SavedReport.read(output)
    save(saved, tmp_path / "runs.md", overwrite=False)
    assert "| a | - |" in (tmp_path / "runs.md").read_text()
    assert CliRunner().invoke(app, ["runs", str(tmp_path)]).exit_code == 2
