"""Tables, Markdown and JSON of results with awkward contents."""

import json
from dataclasses import replace

import pytest

from basnet_benchmarks.environment import environment
from basnet_benchmarks.latency import LatencyConfig, LatencyReport, LatencyRow, NotRun
from basnet_benchmarks.measurement import Measurement, ratio_estimate
from basnet_benchmarks.parity import ParityResult, ParityRow
from basnet_benchmarks.report import SavedReport, check_output, json_text, markdown, save, terminal, values_of
from basnet_benchmarks.tables import table_of
from basnet_benchmarks.video import VideoReport, VideoResult, VideoRun
from basnet_runtime.parity import ParityReport, tolerance_for
from basnet_torch.errors import UsageError


def latency_report():
    slow, fast = (Measurement(turns=((second,),) * 6) for second in (0.3, 0.1))
    row = LatencyRow(
        model="a|b.onnx",
        fingerprint="0123456789ab",
        backend="openvino",
        precision="bf16",
        runs_on="OpenVINO",
        width=64,
        size=(256, 256),
        measurement=fast,
        ratio=ratio_estimate(slow, fast),
    )
    return LatencyReport(
        config=LatencyConfig(models=("a|b.onnx",)),
        environment=environment(2),
        rows=(row, replace(row, ratio=None)),
        not_run=(NotRun(name="x", reason="not installed"),),
    )


def parity_result():
    worst = dict.fromkeys(("max_abs", "mean_abs", "p999_abs", "flips", "boundary_iou"), "picture 1")
    report = ParityReport(
        tolerance=tolerance_for("fp32"),
        pictures=2,
        informative=2,
        max_abs=float("nan"),
        mean_abs=0.0,
        p999_abs=0.0,
        flips=0.0,
        boundary_iou=1.0,
        worst=worst,
        mae_change=0.001,
        max_f_change=-0.002,
    )
    rows = (
        ParityRow(model="m.onnx", backend="onnxruntime", precision="fp32", runs_on="CPU", report=report),
        ParityRow(model="m.onnx", backend="openvino", precision="bf16", reason="OpenVINO is not installed"),
    )
    return ParityResult(
        reference="m.pth",
        reference_runs_on="PyTorch",
        pictures="dev",
        environment=environment(2),
        rows=rows,
        asked=False,
    )


def video_result(*seconds, model="m.onnx"):
    spent = {"decode": 1.0, "network": 3.0}
    runs = tuple(VideoRun(frames=10, seconds=second, cpu_by_stage=spent) for second in seconds)
    return VideoResult(model=model, runs_on="CPU", runs=runs)


def video_report():
    return VideoReport(source="clip.mp4", environment=environment(2), results=(video_result(2.0, 4.0, 5.0),))


def video_comparison():
    """Two models in six rounds: the second one twice as fast in five of them, while the machine slows down."""
    first = video_result(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    second = video_result(0.5, 1.0, 1.5, 2.0, 2.5, 2.0, model="m-int8.onnx")
    return VideoReport(source="clip.mp4", environment=replace(environment(2), processors=2), results=(first, second))


REPORTS = [latency_report, parity_result, video_report, video_comparison]


@pytest.mark.parametrize("make", REPORTS)
def test_every_row_has_every_column_and_markdown_shows_them(make):
    table = table_of(values_of(make()))
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.numbers <= set(table.columns)
    lines = [line for line in markdown(make()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(table.columns) + 1}
    assert "Environment" in markdown(make())


@pytest.mark.parametrize("make", REPORTS)
def test_json_is_strict_and_names_its_environment(make):
    def refuse(constant):
        raise AssertionError(constant)

    values = json.loads(json_text(make()), parse_constant=refuse)
    assert values["environment"]["threads"] == 2
    assert values["command"] in ("latency", "parity", "video")


def test_latency_shows_ratio_with_interval_and_what_did_not_run():
    text = terminal(latency_report())
    for part in ("100.0 [100.0, 100.0]", "3.00 [3.00, 3.00]", "no reference", "not run: x: not installed", "a|b.onnx"):
        assert part in text
    assert json.loads(json_text(latency_report()))["results"][0]["ratio_to_pytorch_fp32"]["value"] == pytest.approx(3)


def test_parity_shows_verdicts_and_reasons():
    text = terminal(parity_result())
    for part in ("failed", "not proven", "-0.00200", "+0.00100", "worst pictures: max_abs picture 1"):
        assert part in text
    assert "passed" not in text
    assert json.loads(json_text(parity_result()))["candidates"][0]["report"]["max_abs"] is None


def test_the_heading_of_latency_names_the_models():
    values = values_of(latency_report())
    assert table_of(values).title == "Latency of a|b.onnx"
    rows = [{**values["results"][0], "model": name} for name in ("a", "b", "c", "d", "a", "e")]
    assert table_of({**values, "results": rows}).title == "Latency of a, b, c and 2 more"


def test_video_shows_median_and_shares():
    text = terminal(video_report())
    for part in ("75%", "25%", "2.50", "5.00", "2.00", "m.onnx on CPU"):
        assert part in text
    table = table_of(values_of(video_report()))
    assert table.rows[-1][:5] == ("m.onnx", "median", "10", "4.00", "2.50")
    assert "x first model" not in table.columns


def test_video_shows_how_near_it_is_to_what_its_processor_time_allows():
    """4 s of processor time in 2 s on two processors is all of it."""
    report = replace(video_report(), environment=replace(environment(2), processors=2))
    column = table_of(values_of(report)).columns.index("of the ceiling")
    assert [row[column] for row in table_of(values_of(report)).rows] == ["100%", "50%", "40%", "50%"]
    assert values_of(report)["results"][0]["of_ceiling"] == 0.5


def test_video_shows_several_models_with_their_medians_and_ratios():
    table = table_of(values_of(video_comparison()))
    assert table.columns[:7] == ("model", "run", "frames", "seconds", "frames/s", "x first model", "of the ceiling")
    assert [row[:2] for row in table.rows] == [
        (model, run) for model in ("m.onnx", "m-int8.onnx") for run in ("1", "2", "3", "4", "5", "6", "median")
    ]
    assert table.rows[0][2:7] == ("10", "1.00", "10.00", "-", "200%")
    assert table.rows[6][4:7] == ("2.92 [1.67, 10.00]", "1.00 [1.00, 1.00]", "58%")
    assert table.rows[13][3:7] == ("1.75", "5.83 [4.00, 20.00]", "2.00 [2.00, 3.00]", "117%")
    assert table.rows[13][7:] == ("25%", "75%")
    assert "6 interleaved rounds" in markdown(video_comparison())


def test_output_is_checked_before_and_never_replaced_unasked(tmp_path):
    with pytest.raises(UsageError, match=r"\.json, \.md or \.html"):
        check_output(tmp_path / "x.txt", overwrite=False)
    target = tmp_path / "x.md"
    save(video_report(), target, overwrite=False)
    assert target.read_text().startswith("### Frames per second")
    with pytest.raises(UsageError, match="--overwrite"):
        check_output(target, overwrite=False)
    check_output(target, overwrite=True)


@pytest.mark.parametrize("make", REPORTS)
def test_a_saved_report_gives_the_same_table(make, tmp_path):
    path = tmp_path / "r.json"
    save(make(), path, overwrite=False)
    again = SavedReport.read(path)
    assert json_text(again) == path.read_text()
    assert table_of(again.values) == table_of(values_of(replace_date(make(), again)))


def replace_date(report, saved):
    """Both were measured at one time, under one load."""
    found = saved.values["environment"]
    return replace(report, environment=replace(report.environment, date=found["date"], load=found["load"]))


def test_lists_of_numbers_stay_on_one_line_and_texts_as_they_are():
    report = SavedReport(values={"command": "x", "turns": [[1.23456789, 2.0], [float("nan")]], "text": "a [1,  2]"})
    text = json_text(report)
    assert "[1.23457, 2.0]" in text
    assert json.loads(text) == {"command": "x", "turns": [[1.23457, 2.0], [None]], "text": "a [1,  2]"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no report"), ("[]", "no report"), ("{}", "no report"), (None, "cannot be read")],
)
def test_what_is_no_report_is_said(content, message, tmp_path):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        SavedReport.read(path)


@pytest.mark.parametrize("values", [{"command": "tea"}, {"command": "latency"}])
def test_values_of_no_table_are_said(values):
    with pytest.raises(UsageError, match=values["command"]):
        table_of(values)
