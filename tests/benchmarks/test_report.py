"""The page of results: one file, well formed, nothing fetched, everything escaped, every plot with its units."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_benchmarks import cli, report
from basnet_benchmarks.cli import app
from basnet_benchmarks.report import KEPT_ABOVE, Panel, heat_map, page, panels_path, read_panels, save, thumbnails
from basnet_benchmarks.results import read_result, values_of
from basnet_torch.errors import BackendUnavailable, UsageError
from tests.benchmarks.test_results import latency_report, parity_result, video_comparison, video_report

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Every element that begins also ends."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.links = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(results, panels=None):
    text = page(results, panels or [()] * len(results))
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert [link for link in parser.links if not link.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)
    return text


def a_panel(name="sun<b>", group="dev & best"):
    mask = np.zeros((40, 60), np.float32)
    mask[10:30, 10:40] = 1
    images = thumbnails({"photo": np.full((40, 60, 3), 90, np.uint8), "truth": mask, "mask": mask * np.nan})
    return Panel(group=group, name=name, caption="MAE 0.1", images=images)


def test_a_page_of_everything_is_whole_and_escaped():
    results = [values_of(make()) for make in (latency_report, parity_result, video_report)]
    text = checked(results, [(a_panel(),), (), ()])
    for part in ("Latency", "Parity", "Video", "sun&lt;b&gt;", "dev &amp; best", "seconds per call", "a|b.onnx"):
        assert part in text
    assert "<b>" not in text
    assert text.count('<img src="data:image/jpeg;base64,') == 3
    assert '<td class="failed">failed</td>' in text
    assert text.count("<svg") == 3  # times of calls, shares of the contract, CPU time of stages


def test_stages_and_speed_against_accuracy_are_drawn():
    values, parity = values_of(latency_report()), values_of(parity_result())
    part = {"median_s": {"value": 0.002, "low": None, "high": None}, "raw_s": None}
    row = {"model": "a|b.onnx", "backend": "openvino", "precision": "bf16", "picture": "coffee.jpg", "note": "a note"}
    values["stages"] = [{**row, "stages": {"decode": part, "compute": part}, "total_s": part["median_s"]}]
    values["throughput"] = [{**row, "pictures_per_second": {"1": 5.0, "2": 6.0}, "best_batch": 2}]
    candidate = parity["candidates"][0]
    candidate |= {"model": "another.onnx", "fingerprint": "0123456789ab", "runs_on": "OpenVINO"}
    candidate["report"]["mean_abs"] = 0.001
    values["results"][1]["runs_on"] = "ONNX Runtime, 2 threads"
    parity["candidates"][1] = {**candidate, "runs_on": "ONNX Runtime, 1 thread"}
    text = checked([values, parity])
    for said in ("Speed against accuracy", "pictures per second, batch 1", "milliseconds per picture", ">decode<"):
        assert said in text
    assert "pictures per call" in text
    for candidate in parity["candidates"]:
        candidate |= {"model": "a|b.onnx", "fingerprint": "another"}  # one name, two files
    assert "Speed against accuracy" not in checked([values, parity])
    for row in (*values["results"], *parity["candidates"]):
        del row["fingerprint"]
    assert "Speed against accuracy" not in checked([values, parity])


def test_models_of_one_video_are_drawn_side_by_side():
    one, several = checked([values_of(video_report())]), checked([values_of(video_comparison())])
    for part in ("m.onnx on CPU", "m-int8.onnx on CPU", "Frames per second of clip.mp4, file to file"):
        assert part in several
    assert "Frames per second of clip.mp4, file to file" not in one


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def test_bars_begin_at_zero_and_say_their_units():
    drawn = (
        report._bars([("x", estimate(5, 4.5, 5.5)), ("y", estimate(4.9))], x="ratio", line=1),
        report._stacked({"a": {"decode": 5.0, "network": 7.0}}, x="milliseconds"),
        report._curves({"a": ([1, 2], [5.0, 5.1])}, x="pictures", y="seconds"),
    )
    for svg, unit in zip(drawn, ("ratio", "milliseconds", "pictures"), strict=True):
        axis = svg[svg.index("matplotlib.axis_1") : svg.index("matplotlib.axis_2")]
        assert float(re.findall(r">(-?[\d.]+)</text>", axis.replace("\u2212", "-"))[0]) == 0
        assert f">{unit}</text>" in svg


def test_a_difference_of_no_importance_does_not_fill_the_axis():
    svg = report._points({"a": (1.0, 0.75161), "b": (1.0, 0.75168)}, x="speed", y="maxF", least=0.02)
    axis = svg[svg.index("matplotlib.axis_2") :]
    ticks = [float(text) for text in re.findall(r">(0\.\d+)</text>", axis)]
    assert len(ticks) > 2  # whole numbers, and not an offset with what lies beyond it
    assert max(ticks) - min(ticks) > 0.01


def test_a_drawing_is_the_same_every_time():
    first, again = (report._bars([("x", estimate(1))], x="s") for _ in range(2))
    assert first == again


def test_heat_is_darkest_where_masks_agree():
    mask = np.zeros((40, 60), np.float32)
    mask[10:30, 10:40] = 1
    other = mask.copy()
    other[12:28, 12:38] = 0.5
    label, heat = heat_map(mask, other)
    assert label == "difference, 0 (black) to 0.5 (yellow)"
    ((_, address),) = thumbnails({label: heat})
    data = base64.b64decode(address.partition(",")[2])
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert seen[20, 25] > 150
    assert seen[2, 2] < 20
    assert heat_map(mask, np.full_like(mask, np.nan))[1].min(axis=2).max() > 100  # what is not finite is brightest


def test_pictures_lie_beside_json_and_come_back(tmp_path):
    panels, path = (a_panel("\u00e9"),), tmp_path / "a.json"
    assert read_panels(panels_path(path)) == ()
    save(values_of(video_report()), path, overwrite=False, panels=panels)
    assert read_panels(panels_path(path)) == panels
    output = tmp_path / "page.html"
    answer = CliRunner().invoke(app, ["report", str(path), "-o", str(output)])
    assert answer.exit_code == 0, answer.output
    assert output.read_text().count("<img") == 3
    blocked = CliRunner().invoke(app, ["video", "clip.mp4", "-o", str(path.with_name("a.json"))])
    assert (blocked.exit_code, "--overwrite" in blocked.stderr) == (2, True)


def test_foreign_pictures_are_refused(tmp_path):
    evil = Panel(group="g", name="n", caption="c", images=(("photo", "https://example.org/x.jpg"),))
    save(values_of(video_report()), tmp_path / "a.json", overwrite=False, panels=[evil])
    with pytest.raises(UsageError, match="no JPEG"):
        read_panels(tmp_path / "a.panels.json")
    (tmp_path / "b.panels.json").write_text('[{"name": "n"}]')
    with pytest.raises(UsageError, match="holds no pictures"):
        read_panels(tmp_path / "b.panels.json")


def call(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_several_results_as_markdown_and_brief_json(tmp_path):
    for name, make in (("p", parity_result), ("v", video_report)):
        save(values_of(make()), tmp_path / f"{name}.json", overwrite=False)
    files = (tmp_path / "p.json", tmp_path / "v.json")
    assert call(*files, "-o", tmp_path / "all.md").exit_code == 0
    assert re.findall("^### .*", (tmp_path / "all.md").read_text(), re.MULTILINE) == ["### p", "### v"]
    assert call(files[0], "--brief", "-o", tmp_path / "brief.json").exit_code == 0
    assert "pictures" not in read_result(tmp_path / "brief.json")["candidates"][0]
    assert call(*files, "-o", tmp_path / "both.json").exit_code == 0
    assert call(tmp_path / "absent.json", "-o", tmp_path / "x.html").exit_code == 2


def test_markdown_above_the_mark_stays(tmp_path):
    save(values_of(video_report()), tmp_path / "v.json", overwrite=False)
    document = tmp_path / "results.md"
    document.write_text(f"# Results\n\nBy hand.\n\n{KEPT_ABOVE}\n\n### old\n")
    assert call(tmp_path / "v.json", "-o", document).exit_code == 2
    assert call(tmp_path / "v.json", "-o", document, "--overwrite").exit_code == 0
    text = document.read_text()
    assert text.startswith(f"# Results\n\nBy hand.\n\n{KEPT_ABOVE}\n\n### v\n\nFrames per second")
    assert "### old" not in text
    assert call(tmp_path / "v.json", "-o", document, "--overwrite").exit_code == 0
    assert document.read_text() == text


def test_without_matplotlib_the_extra_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    answer = CliRunner().invoke(app, ["video", "clip.mp4", "-o", str(tmp_path / "x.html")])
    assert (answer.exit_code, "basnet-deploy[report]" in answer.stderr) == (3, True)
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(BackendUnavailable, match=r"basnet-deploy\[report\]"):
        page([values_of(video_report())], [()])
