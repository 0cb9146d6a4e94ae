"""Folders, globs and all kinds of results over a cluster: the bytes, journal and summary of one machine."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from basnet_runtime.command import cluster as cluster_command
from basnet_runtime.command.journal import JOURNAL_NAME
from basnet_torch.errors import BackendUnavailable, MediaError, UsageError

from .conftest import command, draw, results


@pytest.mark.parametrize("kind", ["mask", "cutout"])
def test_the_bytes_of_one_machine(tmp_path, alone, spread, kind):
    from basnet_runtime.kinds import OutputKind

    draw(tmp_path / "in", [f"{number}.png" for number in range(9)])
    draw(tmp_path / "in" / "below", ["deep.jpg"])
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    given = {"kind": OutputKind.parse(kind), "recursive": True}
    one, lines = alone(**given), []
    many = spread(**given, tell=lines.append)
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    assert len(many.results) == 10
    assert {str(result.source) for result in many.results} == {str(result.source) for result in one.results}
    assert [failure.error for failure in many.failures] == [failure.error for failure in one.failures]
    assert many.left_out == one.left_out
    assert sum(row["done"] for row in many.workers) == 10
    assert sum(row["failed"] for row in many.workers) == 1
    assert lines[-1].startswith("10 of 11 done, 1 failed, ")


def test_relative_names_stay_as_they_were_given(tmp_path, spread, monkeypatch):
    draw(tmp_path / "in", ["a.png"])
    (tmp_path / "in" / "b.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    summary = spread(inputs=("in/*.png",))
    assert [str(result.source) for result in summary.results] == ["in/a.png"]
    assert [failure.error.partition(":")[0] for failure in summary.failures] == ["in/b.png"]


def test_the_same_command_goes_on_either_way(tmp_path, alone, spread):
    draw(tmp_path / "in", ["a.png", "b.png"])
    spread("one")
    alone("two")
    draw(tmp_path / "more", ["c.png"])
    shutil.copy(tmp_path / "more" / "c.png", tmp_path / "in")
    assert [result.source.name for result in alone("one").results] == ["c.png"]
    assert [Path(result.source).name for result in spread("two").results] == ["c.png"]
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert spread("one").results == []


def test_one_file(tmp_path, spread):
    draw(tmp_path / "in", ["a.png"])
    summary = spread("a.jpg", inputs=(str(tmp_path / "in" / "a.png"),))
    assert [Path(result.target).name for result in summary.results] == ["a.jpg"]
    assert (tmp_path / "a.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_nothing_is_overwritten_unasked(tmp_path, spread):
    draw(tmp_path / "in", ["a.png", "b.png"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mask.png").write_text("mine")
    with pytest.raises(UsageError, match="already there"):
        spread()
    assert [Path(result.source).name for result in spread(skip_existing=True).results] == ["b.png"]
    assert (tmp_path / "out" / "a.mask.png").read_text() == "mine"
    assert len(spread(overwrite=True).results) == 2
    assert (tmp_path / "out" / "a.mask.png").read_bytes()[:4] == b"\x89PNG"


def test_a_file_that_appears_while_work_goes_on_stays(tmp_path, spread):
    draw(tmp_path / "in", [f"{number}-slow.png" for number in range(8)])
    seen = []

    def appear(_):
        if not seen:
            (tmp_path / "out" / "7-slow.mask.png").write_text("mine")
        seen.append(1)

    from basnet_runtime.command import cluster

    before, cluster._TELL_SECONDS = cluster._TELL_SECONDS, 0.0
    try:
        summary = spread(chunk=1, tell=appear)
    finally:
        cluster._TELL_SECONDS = before
    assert len(summary.results) == 7
    assert [failure.source.name for failure in summary.failures] == ["7-slow.png"]
    assert "exists already; --overwrite replaces it" in summary.failures[0].error
    assert (tmp_path / "out" / "7-slow.mask.png").read_text() == "mine"


def test_a_running_job_has_its_folder_alone(tmp_path, options, spread):
    from basnet_runtime.command.journal import Journal
    from basnet_runtime.command.run import plan_run

    draw(tmp_path / "in", ["a.png"])
    plan, _ = plan_run(options("out"))
    with Journal.of(plan, options("out")).writing(plan.jobs), pytest.raises(UsageError, match="another run"):
        spread()


@pytest.mark.parametrize(
    ("where", "error", "text"),
    [
        ("somewhere", UsageError, "it must be local, tcp://HOST:PORT, tls://HOST:PORT or SCHEDULER.json"),
        ("/no/such/scheduler.json", BackendUnavailable, "no such scheduler file"),
        ("tcp://127.0.0.1:1", BackendUnavailable, "no cluster there"),
        ("tls://127.0.0.1:1", BackendUnavailable, "Dask's configuration has no keys for TLS; set DASK_"),
        *((text, UsageError, "it must be local, tcp://HOST:PORT") for text in ("tcp://", "tcp://h", "tls://h:x")),
    ],
)
def test_no_cluster(tmp_path, spread, monkeypatch, where, error, text):
    from basnet_runtime.cluster import dask_workers

    monkeypatch.setattr(dask_workers, "_CONNECT_SECONDS", 1)
    draw(tmp_path / "in", ["a.png"])
    with pytest.raises(error, match=text):
        spread(cluster=where)


@pytest.mark.parametrize("text", ["", "x", "{}", "[1]", '{"address": 5}', '{"address": "tcp://h"}'])
def test_no_scheduler_file(tmp_path, spread, text):
    draw(tmp_path / "in", ["a.png"])
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(BackendUnavailable, match=r"s\.json: no scheduler file, it holds no address"):
        spread(cluster=str(tmp_path / "s.json"))


def test_a_connection_that_fails_is_told_at_once(tmp_path):
    """Also at the end of the process, when what did not connect is forgotten."""
    draw(tmp_path / "in", ["a.png"])
    began = time.monotonic()
    words = command("in", "-o", "out", "--cluster", "tls://127.0.0.1:1")
    done = subprocess.run(words, cwd=tmp_path, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, time.monotonic() - began < 25) == (3, True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: tls://127.0.0.1:1: Dask's configuration has no keys")


def test_a_client_that_does_not_connect_is_not_waited_for(monkeypatch):
    import gc

    import distributed

    from basnet_runtime.cluster import dask_workers

    def fails(self, *_, **__):
        raise AssertionError

    monkeypatch.setattr(distributed.Client, "_ensure_connected", fails)
    closed = []
    monkeypatch.setattr(distributed.Client, "_close", lambda self, **_: closed.append(self))
    nothing = dict.fromkeys(("greet", "accept", "work", "stop"), lambda *_: None)
    with pytest.raises(BackendUnavailable, match=r"no cluster there \(AssertionError\)"):
        dask_workers.DaskWorkers("tcp://127.0.0.1:1", slots=(), **nothing)
    gc.collect()
    assert not closed


@pytest.mark.parametrize("error", [KeyboardInterrupt, BackendUnavailable])
def test_an_ended_run_leaves_no_claims(tmp_path, spread, monkeypatch, error):
    draw(tmp_path / "in", ["a.png"])

    def record(self, items, answer):
        assert list(tmp_path.glob(".*.partial"))
        raise error

    monkeypatch.setattr(cluster_command.Driver, "record", record)
    with pytest.raises(error):
        spread("a.mask.png", inputs=(str(tmp_path / "in" / "a.png"),))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mask.png", "in"]


def test_exit_codes_are_those_of_one_machine(tmp_path, alone, spread):
    draw(tmp_path / "in", ["a.png"])
    from basnet_runtime.kinds import OutputKind

    for run in (alone, spread):
        with pytest.raises(MediaError, match=r"^/nope.png") as raised:
            run(kind=OutputKind.parse("image:/nope.png"))
        assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "words",
    [("-", "--cluster", "local"), ("camera:0", "-o", "x.mp4", "--cluster", "local"), ("--watch", "--cluster", "local")],
)
def test_what_runs_on_one_machine_only(tmp_path, words):
    words = command(*words, *(() if len(words) > 3 else ["."]))
    done = subprocess.run(words, cwd=tmp_path, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--cluster" in done.stderr


def test_a_local_cluster_on_a_clean_stdout(tmp_path, alone, monkeypatch):
    """The command starts a scheduler and workers by itself, and what workers print is not in the JSON."""
    from .conftest import FAULTS

    draw(tmp_path / "in", ["a-print.png", "b.png", "c.png"])
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", json.dumps([str(FAULTS)]))
    words = (tmp_path / "in", "-o", tmp_path / "out", "--precision", "fp32", "--cluster", "local", "--json")
    done = subprocess.run(command(*words, "--workers", 2), timeout=120, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert len(summary["results"]) == 3
    assert sum(row["done"] for row in summary["workers"]) == 3
    assert b"from C code" in done.stderr
    assert b"3 of 3 done, 0 failed" in done.stderr
    assert b"Traceback" not in done.stderr
    alone()
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    assert (tmp_path / "out" / JOURNAL_NAME).exists()


def test_distributed_is_imported_only_when_asked(tmp_path):
    draw(tmp_path / "in", ["a.png"])
    code = (
        "import sys\nfrom basnet_runtime.command.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'distributed', 'dask', 'fsspec'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    done = subprocess.run(words, timeout=120, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_without_distributed_it_says_what_to_install(tmp_path):
    draw(tmp_path / "in", ["a.png"])
    code = "import sys\nsys.modules['distributed'] = None\nfrom basnet_runtime.command.cli import main\nmain()"
    words = [sys.executable, "-c", code, str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--cluster", "local"]
    done = subprocess.run(words, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install 'basnet-deploy[cluster]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
