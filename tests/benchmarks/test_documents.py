"""Marked blocks of a Markdown file are rewritten from reports, and a number that was typed by hand is found."""

import re

import pytest
from typer.testing import CliRunner

from basnet_benchmarks.cli import app
from basnet_benchmarks.documents import refreshed, rewrite
from basnet_benchmarks.report import save
from basnet_torch.errors import BasnetError, UsageError
from tests.benchmarks.test_report import latency_report, video_report

TEXT = """# Title

<!-- table: reports/latency.json columns="model, median ms" -->
| old |
<!-- end -->

A median of <!-- value: reports/video.json results.0.frames_per_second.value .2f -->9.99<!-- end --> frames.
"""


@pytest.fixture
def document(tmp_path):
    (tmp_path / "reports").mkdir()
    save(latency_report(), tmp_path / "reports" / "latency.json", overwrite=False)
    save(video_report(), tmp_path / "reports" / "video.json", overwrite=False)
    path = tmp_path / "sub" / "README.md"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def test_blocks_are_rewritten_once_and_the_rest_stays(document):
    assert rewrite(document, check=True)
    assert document.read_text() == TEXT
    assert rewrite(document)
    text = document.read_text()
    assert text.startswith("# Title\n\n<!-- table: reports/latency.json ")
    assert "| model | median ms |\n| --- | ---: |\n| a\\|b.onnx (width 64, 256x256) | 100.0 [100.0, 100.0] |" in text
    assert "| old |" not in text
    assert re.search(r"; 2 threads; (load before: [\d.]+; )?20\d\d-\d\d-\d\d; ", text)  # the machine stands below
    assert "`reports/latency.json`</sub>" in text
    assert "-->2.50<!-- end --> frames." in text
    assert not rewrite(document, check=True)


def test_rows_are_chosen_by_a_word(document):
    text = TEXT.replace('columns="model, median ms"', 'rows="nothing such"')
    with pytest.raises(UsageError, match="no row holds nothing such"):
        refreshed(text, document)
    rows = refreshed(TEXT.replace('columns="model, median ms"', 'rows="no reference"'), document)
    assert rows.count("a\\|b.onnx") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no marker", "has no marker"),
        (TEXT.replace("<!-- end --> frames", "frames"), "2 markers begin and 1 end"),
        (TEXT.replace("latency.json", "absent.json"), "none of its parent folders"),
        (TEXT.replace("median ms", "mean ms"), "no column mean ms"),
        (TEXT.replace("columns=", "width="), "only columns="),
        (TEXT.replace(" .2f", ""), "its format"),
        (TEXT.replace("second.value", "second.middle"), "has no results.0.frames_per_second.middle"),
        (TEXT.replace("frames_per_second.value", "runs"), "no number"),
    ],
)
def test_mistakes_in_markers_are_said(document, text, message):
    with pytest.raises(BasnetError, match=message):
        refreshed(text, document)


def test_values_are_found_in_lists(document):
    text = "<!-- value: reports/video.json results.0.runs.1.seconds .1f -->?<!-- end -->"
    assert ">4.0<" in refreshed(text, document)
    text = "<!-- value: reports/latency.json results[backend=openvino].pictures d -->?<!-- end -->"
    assert ">1<" in refreshed(text, document)


def test_command(document):
    call = CliRunner().invoke
    assert call(app, ["tables", "--check", str(document)]).exit_code == 4
    assert call(app, ["tables", str(document)]).exit_code == 0
    assert call(app, ["tables", "--check", str(document)]).exit_code == 0
    assert call(app, ["tables", str(document.with_name("absent.md"))]).exit_code == 2


def test_a_text_has_no_format_of_numbers(document):
    text = TEXT.replace("results.0.frames_per_second.value .2f", "source .2f")
    with pytest.raises(UsageError, match=r"has no format \.2f"):
        refreshed(text, document)


def test_what_is_no_text_is_one_line(document):
    document.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is no text in UTF-8"):
        rewrite(document)
