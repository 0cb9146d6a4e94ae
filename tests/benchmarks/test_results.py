"""Results with awkward contents as JSON, as Markdown and in a terminal."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from basnet_benchmarks.environment import environment
from basnet_benchmarks.latency import LatencyConfig, LatencyReport, LatencyRow, NotRun
from basnet_benchmarks.parity import ParityResult, ParityRow
from basnet_benchmarks.report import save
from basnet_benchmarks.results import brief, json_text, markdown, read_result, shown, terminal, values_of
from basnet_benchmarks.statistics import Measurement, ratio_estimate
from basnet_benchmarks.video import VideoReport, VideoResult, VideoRun
from basnet_runtime.parity import ParityReport, tolerance_for
from basnet_torch.errors import UsageError


def latency_report():
    slow, fast = (Measurement(turns_s=((second,),) * 6) for second in (0.3, 0.1))
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
        results=(row, replace(row, ratio=None)),
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
        candidates=rows,
        asked=False,
    )


def video_result(*seconds, model="m.onnx", processors=2):
    spent = {"decode": 1.0, "network": 3.0}
    runs = tuple(VideoRun(frames=10, seconds=s, cpu_seconds_by_stage=spent, processors=processors) for s in seconds)
    return VideoResult(model=model, runs_on="CPU", runs=runs, first=runs)


def video_report():
    return VideoReport(source="clip.mp4", environment=environment(2), results=(video_result(2.0, 4.0, 5.0),))


def video_comparison():
    """Two models in six rounds: the second one twice as fast in five of them, while the machine slows down."""
    first = video_result(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    second = video_result(0.5, 1.0, 1.5, 2.0, 2.5, 2.0, model="m-int8.onnx")
    second = replace(second, first=first.runs)
    return VideoReport(source="clip.mp4", environment=replace(environment(2), processors=2), results=(first, second))


RESULTS = [latency_report, parity_result, video_report, video_comparison]


@pytest.mark.parametrize("make", RESULTS)
def test_every_row_has_every_column_and_markdown_shows_them(make):
    found = shown(values_of(make()))
    for table in found.tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    text = markdown(values_of(make()))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == sum(2 + len(table.rows) for table in found.tables)
    assert text.startswith(f"### {found.title}\n")
    assert f"<br>commit {values_of(make())['environment']['commit']}" in text
    assert markdown(values_of(make()), "own name").startswith(f"### own name\n\n{found.title}:\n")


@pytest.mark.parametrize("make", RESULTS)
def test_json_is_strict_and_names_its_environment(make):
    def refuse(constant):
        raise AssertionError(constant)

    values = json.loads(json_text(values_of(make())), parse_constant=refuse)
    assert values["environment"]["threads"] == 2
    assert values["command"] in ("latency", "parity", "video")


def test_latency_shows_ratio_with_interval_and_what_did_not_run():
    values = values_of(latency_report())
    text = terminal(values)
    for part in ("100.0 [100.0, 100.0]", "3.00 [3.00, 3.00]", "no reference", "not run: x: not installed", "a|b.onnx"):
        assert part in text
    assert values["results"][0]["ratio_to_pytorch_fp32"]["value"] == pytest.approx(3)
    assert "a\\|b.onnx" in markdown(values)


def test_stages_memory_and_device_times_have_their_tables():
    values = values_of(latency_report())
    part = {"median_s": {"value": 0.002, "low": None, "high": None}, "raw_s": None}
    row = {"model": "a", "backend": "openvino", "precision": "bf16", "picture": "coffee.jpg", "note": "a note"}
    values["stages"] = [{**row, "stages": {"decode": part, "copy_in": part}, "total_s": part["median_s"]}]
    values["results"][0] |= {
        "memory": {
            "before_bytes": 1e6, "opened_bytes": 2e6, "highest_bytes": 3e6, "device_bytes": None, "threads": 4,
        },
        "device": {"copy_in_s": [], "compute_s": [0.001, 0.003], "graph_s": [], "copy_out_s": [], "no_graph": "why"},
        "device_ratio_to_pytorch_fp32": 2.5,
    }  # fmt: skip
    values["results"][1]["no_memory"] = "took too long"
    times, stages, memory, device = shown(values).tables
    assert len(times.rows) == 2
    assert stages.columns == ("candidate", "total", "decode", "copy in")
    assert stages.rows == (("a, openvino bf16", "2.0", "2.00", "2.00"),)
    assert memory.rows == (("a|b.onnx, openvino bf16", "1", "1", "2", "3", "-", "4"),)
    assert device.rows == (("a|b.onnx, openvino bf16", "1", "-", "2.000", "-", "-", "2.50", "why"),)
    text = markdown(values)
    assert "- a note" in text
    assert "batch 1: not measured: took too long" in text


def test_many_warnings_are_counted():
    values = values_of(latency_report()) | {"warnings": [f"w{i}" for i in range(8)]}
    notes = [note for note in shown(values).notes if "warning" in note]
    assert notes == [*(f"warning: w{i}" for i in range(5)), "3 more warnings are in the JSON"]


def test_parity_shows_verdicts_and_reasons():
    values = values_of(parity_result())
    text = terminal(values)
    for part in ("failed", "not proven", "-0.00200", "+0.00100", "worst pictures: max_abs picture 1"):
        assert part in text
    assert "passed" not in text
    assert values["candidates"][0]["report"]["max_abs"] is None
    report = {**values["candidates"][0]["report"], "mae_change": None, "max_abs": 0.0}
    exact = {**values, "candidates": [{**values["candidates"][0], "report": report}]}
    assert "no truth" in terminal(exact)
    assert "not finite" in terminal(
        {**exact, "candidates": [{**exact["candidates"][0], "report": report | {"max_abs": None}}]}
    )


def test_the_heading_of_latency_names_the_models():
    values = values_of(latency_report())
    assert shown(values).title == "Latency of a|b.onnx"
    rows = [{**values["results"][0], "model": name} for name in ("a", "b", "c", "d", "a", "e")]
    assert shown({**values, "results": rows}).title == "Latency of a, b, c and 2 more"


def test_video_shows_median_and_shares():
    text = terminal(values_of(video_report()))
    for part in ("75%", "25%", "2.50", "5.00", "2.00", "m.onnx on CPU"):
        assert part in text
    (table,) = shown(values_of(video_report())).tables
    assert table.rows[-1][:5] == ("m.onnx", "median", "10", "4.00", "2.50")
    assert "x first model" not in table.columns


def test_video_shows_how_near_it_is_to_what_its_cpu_time_allows():
    """4 s of CPU time in 2 s on two CPUs is all of it."""
    report = replace(video_report(), environment=replace(environment(2), processors=2))
    (table,) = shown(values_of(report)).tables
    column = table.columns.index("of the ceiling")
    assert [row[column] for row in table.rows] == ["100%", "50%", "40%", "50%"]
    assert values_of(report)["results"][0]["of_ceiling"] == 0.5


def test_video_shows_several_models_with_their_medians_and_ratios():
    (table,) = shown(values_of(video_comparison())).tables
    assert table.columns[:7] == ("model", "run", "frames", "seconds", "frames/s", "x first model", "of the ceiling")
    assert [row[:2] for row in table.rows] == [
        (model, run) for model in ("m.onnx", "m-int8.onnx") for run in ("1", "2", "3", "4", "5", "6", "median")
    ]
    assert table.rows[0][2:7] == ("10", "1.00", "10.00", "-", "200%")
    assert table.rows[6][4:7] == ("2.92 [1.67, 10.00]", "1.00 [1.00, 1.00]", "58%")
    assert table.rows[13][3:7] == ("1.75", "5.83 [4.00, 20.00]", "2.00 [2.00, 3.00]", "117%")
    assert table.rows[13][7:] == ("25%", "75%")
    assert table.numeric == (False, False, *(True,) * 7)
    assert "6 interleaved rounds" in markdown(values_of(video_comparison()))


@pytest.mark.parametrize("make", RESULTS)
def test_a_saved_result_gives_the_same_table(make, tmp_path):
    values, path = values_of(make()), tmp_path / "r.json"
    save(values, path, overwrite=False)
    assert json_text(read_result(path)) == path.read_text()
    assert shown(read_result(path)) == shown(values)


def test_lists_of_numbers_stay_on_one_line_and_texts_as_they_are():
    class Given:
        def to_dict(self):
            return {"command": "x", "turns": [[1.23456789, 2.0], [float("nan")]], "text": "a [1,  2]"}

    text = json_text(values_of(Given()))
    assert "[1.23457, 2.0]" in text
    assert json.loads(text) == {"command": "x", "turns": [[1.23457, 2.0], [None]], "text": "a [1,  2]"}


def test_brief_json_names_no_folder():
    values = values_of(replace(parity_result(), pictures="/home/me/dev", reference_file="/home/me/m.pth"))
    short = brief(values)
    assert "/home" not in json_text(short)
    assert (short["pictures"], "pictures" in short["candidates"][0]) == ("dev", False)
    video = values_of(video_report())
    assert brief(video) == video


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no result"), ("[]", "no result"), ("{}", "no result"), (None, "cannot be read")],
)
def test_what_is_no_result_is_said(content, message, tmp_path):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_result(path)


@pytest.mark.parametrize("values", [{"command": "tea"}, {"command": "latency"}])
def test_values_of_no_table_are_said(values):
    with pytest.raises(UsageError, match=values["command"]):
        shown(values)


def _latency():
    return read_result(Path(__file__).parents[1] / "data" / "written_by_e93c003" / "latency.json")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"p90_s": "fast"}, "results[0].p90_s is 'fast'; it must be float | null"),
        ({"size": [256]}, "results[0].size is [256]; it must be array of length 2"),
        ({"median_s": {"value": 1.0}}, "results[0].median_s.low is missing"),
        ({"memory": {"threads": "many"}}, "results[0].memory.threads is 'many'; it must be int"),
        ({"model": None}, "results[0].model is None; it must be str"),
        ({"p99_s": float("inf")}, "results[0].p99_s is inf; it must be finite"),
    ],
)
def test_a_value_that_does_not_fit_is_named(change, line):
    values = _latency()
    values["results"][0] |= change
    with pytest.raises(UsageError) as caught:
        shown(values)
    assert str(caught.value) == f"the latency result lacks a value ({line}); measure it with this version"
