"""The page of results: one file, well formed, nothing fetched, everything escaped, every plot with its units."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from basnet_benchmarks import plots, report_page
from basnet_benchmarks.cli import app
from basnet_benchmarks.panels import Panel, heat_panel, panels_path, read_panels, truth_panel, write_panels
from basnet_benchmarks.report import SavedReport, html, save, values_of
from basnet_torch.errors import BackendUnavailable, UsageError
from tests.benchmarks.test_report import latency_report, parity_result, video_comparison, video_report

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


def checked(text):
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert [link for link in parser.links if not link.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)
    return text


def picture(name="sun<b>"):
    image = np.full((40, 60, 3), 90, np.uint8)
    mask = np.zeros((40, 60), np.float32)
    mask[10:30, 10:40] = 1
    return {"name": name, "caption": "MAE 0.1", "image_HWC": image, "truth_HW": mask}, mask


def test_a_page_of_everything_is_whole_and_escaped():
    shown, mask = picture()
    panels = {0: (truth_panel(group="dev & best", mask_HW=mask * 0.5, **shown),)}
    latency = replace(latency_report(), not_run=())
    text = checked(html([latency, parity_result(), video_report()], panels))
    for part in ("Latency", "Parity", "Video", "sun&lt;b&gt;", "dev &amp; best", "milliseconds per call", "a|b.onnx"):
        assert part in text
    assert "<b>" not in text
    assert text.count('<img src="data:image/jpeg;base64,') == 3
    assert "prefers-color-scheme: dark" in text
    assert "var(--ink)" in text


def test_stages_and_speed_against_accuracy_are_drawn():
    values = values_of(latency_report())
    part = {"median_s": {"value": 0.002, "low": None, "high": None}, "raw_s": None}
    row = {"model": "a|b.onnx", "backend": "openvino", "precision": "bf16", "picture": "coffee.jpg", "note": "a note"}
    values["stages"] = [{**row, "stages": {"decode": part, "compute": part}, "total_s": part["median_s"]}]
    rates = {"pictures_per_second": {"1": 5.0, "2": 6.0}, "best_batch": 2}
    values["throughput"] = [{**row, **rates}]
    parity = values_of(parity_result())
    candidate = parity["candidates"][0]
    candidate |= {"model": "another.onnx", "fingerprint": "0123456789ab", "runs_on": "OpenVINO"}
    candidate["report"]["mean_abs"] = 0.001
    values["results"][1]["runs_on"] = "ONNX Runtime, 2 threads"
    parity["candidates"][1] = {**candidate, "runs_on": "ONNX Runtime, 1 thread"}
    text = checked(html([SavedReport(values=values), SavedReport(values=parity)]))
    assert "Speed against accuracy" in text
    assert "pictures per second, batch 1" in text
    assert "milliseconds per picture" in text
    assert "pictures per call" in text
    assert ">decode<" in text
    for candidate in parity["candidates"]:
        candidate |= {"model": "a|b.onnx", "fingerprint": "another"}  # one name, two files
    assert "Speed against accuracy" not in html([SavedReport(values=values), SavedReport(values=parity)])
    for row in (*values["results"], *parity["candidates"]):
        del row["fingerprint"]  # as earlier versions wrote them
    assert "Speed against accuracy" not in html([SavedReport(values=values), SavedReport(values=parity)])


def test_models_of_one_video_are_drawn_side_by_side():
    one, several = html([video_report()]), checked(html([video_comparison()]))
    for part in ("clip.mp4: m.onnx on CPU", "clip.mp4: m-int8.onnx on CPU", "Frames per second, file to file"):
        assert part in several
    assert "Frames per second, file to file" not in one


def axis_starts_at_zero(svg):
    """The first number on the horizontal axis."""
    axis = svg[svg.index("matplotlib.axis_1") : svg.index("matplotlib.axis_2")]
    return float(re.findall(r">(-?[\d.]+)</text>", axis.replace("\u2212", "-"))[0]) == 0


def test_a_difference_of_no_importance_does_not_fill_the_axis():
    points = [plots.Point(label=name, group=name, x=1, y=y) for name, y in (("a", 0.75161), ("b", 0.75168))]
    svg = plots.scatter(points, x="speed", y="maxF", y_span=0.02)
    axis = svg[svg.index("matplotlib.axis_2") :]
    ticks = [float(text) for text in re.findall(r">(0\.\d+)</text>", axis)]
    assert len(ticks) > 2  # whole numbers, and not an offset with what lies beyond it
    assert max(ticks) - min(ticks) > 0.01


def test_bars_begin_at_zero_and_say_their_units():
    drawn = (
        plots.bars(
            [plots.Bar(label="x", value=5, low=4.5, high=5.5), plots.Bar(label="y", value=4.9)], x="ratio", line=1
        ),
        plots.stacked_bars({"a": {"decode": 5.0, "network": 7.0}}, x="milliseconds"),
        plots.boxes({"a": [5.0, 5.1], "b": [5.2, 5.3]}, x="seconds"),
    )
    for svg, unit in zip(drawn, ("ratio", "milliseconds", "seconds"), strict=True):
        assert axis_starts_at_zero(svg)
        assert f">{unit}</text>" in svg


def test_a_drawing_is_the_same_every_time_and_its_names_are_its_own():
    first, again = (plots.bars([plots.Bar(label="x", value=1)], x="s") for _ in range(2))
    other = plots.bars([plots.Bar(label="x", value=2)], x="s")
    assert first == again
    names = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, other)]
    assert names[0]
    assert not names[0] & names[1]


def test_heat_is_darkest_where_masks_agree():
    cv2 = pytest.importorskip("cv2")
    import base64

    shown, mask = picture()
    other = mask.copy()
    other[12:28, 12:38] = 0.5
    panel = heat_panel(group="g", reference_HW=mask, candidate_HW=other, **shown)
    assert [label.split(",")[0] for label, _ in panel.images] == [
        "photo", "truth", "reference mask", "candidate mask", "difference",
    ]  # fmt: skip
    data = base64.b64decode(panel.images[-1][1].partition(",")[2])
    heat = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert heat[20, 25] > 150
    assert heat[2, 2] < 20


def test_masks_with_nan_are_shown():
    shown, mask = picture()
    panel = heat_panel(group="g", reference_HW=mask, candidate_HW=np.full_like(mask, np.nan), **shown)
    assert len(panel.images) == 5


def test_pictures_lie_beside_json_and_come_back(tmp_path):
    shown, mask = picture("é")
    panels = (truth_panel(group="g", mask_HW=mask, **shown),)
    path = panels_path(tmp_path / "a.json")
    assert read_panels(path) == ()
    write_panels(panels, path, overwrite=False)
    assert read_panels(path) == panels
    save(video_report(), tmp_path / "a.json", overwrite=False)
    output = tmp_path / "page.html"
    answer = CliRunner().invoke(app, ["report", str(tmp_path / "a.json"), "-o", str(output)])
    assert answer.exit_code == 0, answer.output
    assert checked(output.read_text()).count("<img") == 3


def test_foreign_pictures_are_refused(tmp_path):
    path = tmp_path / "a.panels.json"
    evil = Panel(group="g", name="n", caption="c", images=(("photo", "https://example.org/x.jpg"),))
    write_panels([evil], path, overwrite=False)
    with pytest.raises(UsageError, match="no JPEG"):
        read_panels(path)


def test_several_reports_as_markdown_and_brief_json(tmp_path):
    for name, make in (("p", parity_result), ("v", video_report)):
        save(make(), tmp_path / f"{name}.json", overwrite=False)
    files = [str(tmp_path / "p.json"), str(tmp_path / "v.json")]
    call = CliRunner().invoke
    assert call(app, ["report", *files, "-o", str(tmp_path / "all.md")]).exit_code == 0
    assert (tmp_path / "all.md").read_text().count("### ") == 2
    assert call(app, ["report", files[0], "--brief", "-o", str(tmp_path / "brief.json")]).exit_code == 0
    brief = SavedReport.read(tmp_path / "brief.json").values
    assert "pictures" not in brief["candidates"][0]
    assert "reference_file" not in brief
    assert call(app, ["report", files[1], "--brief", "-o", str(tmp_path / "video.json")]).exit_code == 0
    assert (tmp_path / "video.json").read_text() == (tmp_path / "v.json").read_text()
    assert call(app, ["report", str(tmp_path / "absent.json"), "-o", str(tmp_path / "x.html")]).exit_code == 2


def test_without_matplotlib_the_extra_is_named_before_anything_runs(tmp_path, monkeypatch):
    from basnet_benchmarks import report

    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"basnet-deploy\[report\]"):
        report.check_output(tmp_path / "x.html", overwrite=False)


def test_films_of_one_name_stay_apart():
    named = [("a on b", {"x": 1}), ("c on b", {"x": 2}), ("a on b", {"x": 3})]
    assert [label for label, _ in report_page._numbered(named)] == ["a on b", "c on b", "a on b (2)"]
