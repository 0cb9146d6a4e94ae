"""Buckets as input and output, with and without a cluster, against a store on loopback."""

import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from basnet_runtime.cluster import buckets
from basnet_runtime.cluster.buckets import path_of, url_of
from basnet_runtime.command import buckets as jobs_in_buckets
from basnet_runtime.command import cluster as cluster_command
from basnet_runtime.command.cluster import run_on_cluster
from basnet_runtime.kinds import OutputKind
from basnet_torch.errors import BackendUnavailable, MediaError, UsageError
from tests import videos
from tests.processes import HEARS_CTRL_C

from .conftest import FAULTS, Quiet, command, draw, results, wait_until

server_of = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def store():
    """A store on a free port, which every process finds by its environment."""
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patched = pytest.MonkeyPatch()
    patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        patched.setenv(name, "us-east-1")
    buckets._file_system.cache_clear()
    yield buckets._file_system("s3")
    patched.undo()
    buckets._file_system.cache_clear()
    server.stop()


@pytest.fixture
def bucket(store, request):
    name = f"b-{abs(hash(request.node.name))}"
    store.mkdir(name)
    return name


def put_all(store, folder, prefix):
    for path in folder.rglob("*"):
        if path.is_file():
            store.put_file(str(path), f"{prefix}/{path.relative_to(folder)}")


def objects(store, prefix):
    """Bytes of results by name, without the journal."""
    found = [name for name, info in store.find(prefix, detail=True).items() if info["type"] == "file"]
    return {name[len(prefix) + 1 :]: store.cat_file(name) for name in found if "/.basnet-run/" not in name}


def in_buckets(options, source, target, **given):
    config = options("out", inputs=(source,), **given)
    return run_on_cluster(jobs_in_buckets.replace(config, output=target), Quiet())


@pytest.mark.parametrize(
    "url", ["s3://b/a//x y.jpg", "s3://b/../.././é#?%41+&.jpg", "gs://b/%/%%.png", "az://b/deep/er/a.b.c"]
)
def test_names_survive(url):
    assert url_of(path_of(url)) == url


@pytest.mark.parametrize("spread_out", [False, True], ids=["alone", "cluster"])
def test_the_bytes_of_files(tmp_path, store, bucket, options, alone, request, spread_out):
    names = ["a.png", "b b.jpg", "c#1?.png", "d%41.png", "e.webp"]
    draw(tmp_path / "in", names)
    draw(tmp_path / "in" / "deep" / "er", ["a.png"])
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    put_all(store, tmp_path / "in", f"{bucket}/photos")
    given = {"recursive": True}
    if spread_out:
        given["cluster"] = started = request.getfixturevalue("cluster").scheduler_address
        assert started
    summary = in_buckets(options, f"s3://{bucket}/photos", f"s3://{bucket}/masks", **given)
    one = alone(recursive=True)
    assert objects(store, f"{bucket}/masks") == results(tmp_path / "alone")
    assert [str(failure.source) for failure in summary.failures] == [f"s3://{bucket}/photos/broken.png"]
    assert summary.failures[0].error == one.failures[0].error.replace(f"{tmp_path}/in", f"s3://{bucket}/photos")
    assert summary.left_out == {".txt": 1}
    told = json.dumps(summary.to_dict())
    assert f"s3://{bucket}/masks/deep/er/a.mask.png" in told
    assert "//s3/" not in told
    assert len(summary.results) == 6
    again = in_buckets(options, f"s3://{bucket}/photos", f"s3://{bucket}/masks", **given)
    assert again.results == []
    assert "6 of 7 were done by an earlier run and are kept" in again.notes


def test_no_claims_stay(tmp_path, store, bucket, options, request, monkeypatch):
    """Neither of an interrupted run nor of a driver that was killed before."""
    where = request.getfixturevalue("cluster").scheduler_address
    put_all(store, draw(tmp_path / "in", ["a.png"]), f"{bucket}/in")
    store.pipe_file(f"{bucket}/out/.basnet-run/188647af9d78-1.claim", b"188647af9d78")
    claims = lambda: [name for name in store.find(f"{bucket}/out/.basnet-run") if name.endswith(".claim")]  # noqa: E731

    def record(self, items, answer):
        assert len(claims()) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_command.Driver, "record", record)
    with pytest.raises(KeyboardInterrupt):
        in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out", cluster=where)
    assert claims() == []
    assert "a.mask.png" in objects(store, f"{bucket}/out")


def test_between_disk_and_bucket(tmp_path, store, bucket, options, alone):
    draw(tmp_path / "in", ["a.png", "b.png"])
    alone()
    in_buckets(options, str(tmp_path / "in"), f"s3://{bucket}/masks/")
    assert objects(store, f"{bucket}/masks") == results(tmp_path / "alone")
    put_all(store, tmp_path / "in", f"{bucket}/photos")
    for _ in range(2):
        in_buckets(options, f"s3://{bucket}/photos/*.png", str(tmp_path / "local"))
    assert results(tmp_path / "local") == results(tmp_path / "alone")
    single = in_buckets(options, f"s3://{bucket}/photos/a.png", f"s3://{bucket}/one.png")
    assert [str(result.target) for result in single.results] == [f"s3://{bucket}/one.png"]
    beside = in_buckets(options, f"s3://{bucket}/photos", None)
    assert str(beside.results[0].target) == f"s3://{bucket}/photos/a.mask.png"
    assert in_buckets(options, f"s3://{bucket}/photos", None).results == []


def test_video_and_animation(tmp_path, store, bucket, options, alone, write_video):
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "clip.mov", videos.images(4), audio="aac")
    import cv2

    animation = cv2.Animation()
    animation.frames, animation.durations = videos.images(3), [100] * 3
    assert cv2.imwriteanimation(str(tmp_path / "in" / "moving.webp"), animation)
    put_all(store, tmp_path / "in", f"{bucket}/in")
    alone()
    in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out")
    assert objects(store, f"{bucket}/out") == results(tmp_path / "alone")


def test_collisions_and_what_is_there_are_refused(tmp_path, store, bucket, options):
    draw(tmp_path / "in", ["a.png", "a.jpg"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    with pytest.raises(UsageError, match=rf"s3://{bucket}/in/a.jpg and s3://{bucket}/in/a.png would both become"):
        in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out")
    store.rm_file(f"{bucket}/in/a.jpg")
    store.pipe_file(f"{bucket}/out/a.mask.png", b"mine")
    with pytest.raises(UsageError, match=f"already there: s3://{bucket}/out/a.mask.png"):
        in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out")
    assert in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out", skip_existing=True).results == []
    assert store.cat_file(f"{bucket}/out/a.mask.png") == b"mine"
    assert len(in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out", overwrite=True).results) == 1
    assert store.cat_file(f"{bucket}/out/a.mask.png")[:4] == b"\x89PNG"


def test_what_appears_meanwhile_stays(tmp_path, store, bucket, options, monkeypatch):
    draw(tmp_path / "in", ["a.png", "b.png"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    fetch = buckets.fetch

    def appears(path, local, **more):
        store.pipe_file(f"{bucket}/out/a.mask.png", b"mine")
        fetch(path, local, **more)

    monkeypatch.setattr(buckets, "fetch", appears)
    summary = in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out")
    (failure,) = summary.failures
    assert failure.error == f"s3://{bucket}/out/a.mask.png exists already; --overwrite replaces it"
    assert store.cat_file(f"{bucket}/out/a.mask.png") == b"mine"
    assert [str(result.source) for result in summary.results] == [f"s3://{bucket}/in/b.png"]


def test_a_changed_source_is_done_again(tmp_path, store, bucket, options):
    draw(tmp_path / "in", ["a.png", "b.png"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out")
    store.put_file(str(tmp_path / "in" / "b.png"), f"{bucket}/in/a.png")
    with pytest.raises(UsageError, match=r"already there: .*a.mask.png;"):
        in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out")


def test_a_large_result_that_is_refused_leaves_no_upload(tmp_path, store, bucket, monkeypatch):
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(12 << 20))
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, **_: 5 << 20)
    target = path_of(f"s3://{bucket}/large.bin")
    buckets.put(large, target, replace=False)
    with pytest.raises(MediaError, match="exists already"):
        buckets.put(large, target, replace=False)
    assert store.list_multipart_uploads(bucket) == []
    assert store.cat_file(f"{bucket}/large.bin") == large.read_bytes()


def test_scratch_holds_one_chunk(tmp_path, store, bucket, options, monkeypatch):
    draw(tmp_path / "in", [f"{number}.png" for number in range(9)])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    most = []
    put = buckets.put

    def counted(*args, **given):
        most.append(len(list((tmp_path / "scratch").rglob("*.png"))))
        put(*args, **given)

    monkeypatch.setattr(buckets, "put", counted)
    in_buckets(options, f"s3://{bucket}/in", f"s3://{bucket}/out", chunk=2)
    assert len(most) == 9
    assert max(most) <= 4  # inputs and results of two pictures
    assert not list((tmp_path / "scratch").iterdir())


class Flaky(ThreadingHTTPServer):
    """In front of the store: answers with a status, or breaks the connection, so many times."""

    def __init__(self, behind, faults):
        super().__init__(("127.0.0.1", 0), Forward)
        self.behind, self.faults, self.seen = behind, list(faults), []


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        import http.client

        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(f"{self.command} {self.path}")
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "break":
            self.close_connection = True
            self.connection.close()
            return
        if fault is not None and fault != "lose":
            text = b"<Error><Code>AnyError</Code><Message>secret=abc?X-Amz-Signature=xyz</Message></Error>"
            self.send_response(fault)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        behind = http.client.HTTPConnection(self.server.behind, timeout=10)
        behind.request(self.command, self.path, body, dict(self.headers))
        got = behind.getresponse()
        data = got.read()
        if fault == "lose":
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(got.status)
        for name, value in got.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = got.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def flaky(store, monkeypatch):
    started = []

    def begin(*faults):
        server = Flaky(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), faults)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(buckets, "_PAUSE_SECONDS", 0.01)
        s3fs.S3FileSystem.clear_instance_cache()
        buckets._file_system.cache_clear()
        return server

    yield begin
    for server in started:
        server.shutdown()
        server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()
    buckets._file_system.cache_clear()


@pytest.mark.parametrize("fault", [500, 503, "break", "lose"])
def test_what_passes_is_tried_again(tmp_path, store, bucket, flaky, fault):
    """A put whose answer was lost counts as done: the object is there, with these bytes."""
    local = tmp_path / "a.bin"
    local.write_bytes(b"bytes")
    server = flaky(fault, fault if fault != "lose" else None)
    buckets.put(local, path_of(f"s3://{bucket}/a.bin"), replace=False)
    assert store.cat_file(f"{bucket}/a.bin") == b"bytes"
    assert sum(line.startswith("PUT") for line in server.seen) == (2 if fault == "lose" else 3)


def test_after_five_tries_it_is_said_without_secrets(tmp_path, bucket, flaky):
    server = flaky(*[503] * 9)
    with pytest.raises(MediaError) as raised:
        buckets.fetch(path_of(f"s3://{bucket}/a.bin"), tmp_path / "a.bin")
    assert str(raised.value).startswith(f"s3://{bucket}/a.bin: ")
    assert "abc" not in str(raised.value)
    assert "xyz" not in str(raised.value)
    assert len(server.seen) == 5


def test_what_does_not_pass_is_not_tried_again(tmp_path, bucket, flaky):
    server = flaky(403, 403)
    with pytest.raises(MediaError):
        buckets.put_text(path_of(f"s3://{bucket}/a.txt"), "a")
    assert len(server.seen) == 1


def test_nothing_there(tmp_path, store, bucket, options):
    summary = in_buckets(options, f"s3://{bucket}/nothing", str(tmp_path / "out"))
    assert [failure.error for failure in summary.failures] == [f"s3://{bucket}/nothing: no such file"]
    summary = in_buckets(options, "s3://no-such-bucket/nothing", str(tmp_path / "out"))
    assert [failure.error for failure in summary.failures] == ["s3://no-such-bucket/nothing: no such file"]


def test_a_pattern_on_a_bucket_that_is_not_there(tmp_path, store, options):
    summary = in_buckets(options, "s3://no-such-bucket/p?.png", str(tmp_path / "out"))
    (failure,) = summary.failures
    assert failure.error == "s3://no-such-bucket/p?.png: no such file (nothing matches the pattern)"


@pytest.mark.parametrize("source", ["s3://buck*/x", "s3://b[12]", "in"])
def test_a_pattern_is_no_buckets_name(tmp_path, store, options, source):
    draw(tmp_path / "in", ["a.png"])
    output = "s3://out?/x" if source == "in" else str(tmp_path / "out")
    named = output if source == "in" else source
    with pytest.raises(UsageError) as raised:
        in_buckets(options, str(tmp_path / "in") if source == "in" else source, output)
    name = named.split("/")[2]
    assert str(raised.value) == f"{named}: {name!r} is a pattern, which a bucket's name cannot be; name one bucket"


@pytest.mark.parametrize("below", ["", "/", "/deep/er", "/a.mask.png"])
def test_an_output_bucket_that_is_not_there(tmp_path, store, options, below):
    draw(tmp_path / "in", ["a.png"])
    with pytest.raises(UsageError) as raised:
        in_buckets(options, str(tmp_path / "in" / "a.png"), f"s3://no-such-bucket{below}")
    assert str(raised.value) == "s3://no-such-bucket: no such bucket; create it, or name another with -o"


def test_the_journal_is_in_order_whatever_the_clocks(tmp_path, store, bucket, options, monkeypatch):
    """Two drivers, the second with a clock that is an hour behind: what it notes comes last all the same."""
    draw(tmp_path / "in", ["a.png"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    source, target = f"s3://{bucket}/in", f"s3://{bucket}/out"
    in_buckets(options, source, target)
    behind = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: behind)
    kind = OutputKind(name="cutout")
    in_buckets(options, source, target, kind=kind)
    text = b"".join(store.cat_file(name) for name in store.find(f"{bucket}/out/.basnet-run"))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["state"] for line in lines] == ["run", "begun", "done", "end"] * 2
    assert [line["target"] for line in lines if line["state"] == "done"] == ["a.mask.png", "a.cutout.png"]


@pytest.mark.parametrize("below", ["", "/deep"])
def test_prefixes_alone_are_below(tmp_path, store, bucket, options, below):
    store.pipe_file(f"{bucket}/deep/er/a.png", b"x")
    (failure,) = in_buckets(options, f"s3://{bucket}{below}", str(tmp_path / "out")).failures
    assert failure.error == f"s3://{bucket}{below}: no pictures or video in this folder; --recursive looks below it"


@pytest.mark.parametrize("name", ["p0.png", "p?.png", ""])
def test_what_is_there_beside_the_inputs(tmp_path, store, bucket, options, name):
    draw(tmp_path / "in", ["p0.png"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    store.pipe_file(f"{bucket}/in/p0.mask.png", b"mine")
    source = f"s3://{bucket}/in/{name}".rstrip("/")
    with pytest.raises(UsageError, match=f"already there: s3://{bucket}/in/p0.mask.png"):
        in_buckets(options, source, None)
    summary = in_buckets(options, source, None, skip_existing=True)
    assert summary.results == summary.failures == []
    assert store.cat_file(f"{bucket}/in/p0.mask.png") == b"mine"


@pytest.mark.parametrize("output", ["", "/out.v1"])
def test_folders_with_a_dot(tmp_path, store, bucket, options, output):
    """A bucket is a folder whatever its name, and so is a prefix below which something lies."""
    store.mkdir(f"{bucket}.dot")
    store.pipe_file(f"{bucket}.dot/out.v1/other.txt", b"x")
    draw(tmp_path / "in", ["a.png"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    target = f"s3://{bucket}.dot{output}"
    (result,) = in_buckets(options, f"s3://{bucket}/in/a.png", target).results
    assert str(result.target) == f"{target}/a.mask.png"
    assert not [name for name in store.find(f"{bucket}.dot") if ".basnet-run" in name]  # as of one file on disk
    (result,) = in_buckets(options, f"s3://{bucket}/in", target, overwrite=True).results
    assert str(result.target) == f"{target}/a.mask.png"


def test_outputs_are_checked_before_work(tmp_path, store, bucket, options):
    draw(tmp_path / "in", ["a.png"])
    put_all(store, tmp_path / "in", f"{bucket}/in")
    with pytest.raises(UsageError) as raised:
        in_buckets(
            options, f"s3://{bucket}/in", f"s3://{bucket}/out", kind=OutputKind(name="cutout"), picture_format="jpg"
        )
    assert str(raised.value).startswith(f"s3://{bucket}/out/a.cutout.jpg: .jpg holds no transparency")
    assert store.find(f"{bucket}/out") == []


def test_a_video_is_read_once_while_planning(tmp_path, store, bucket, options, write_video, monkeypatch):
    write_video(tmp_path / "clip.mov", videos.images(2), audio="aac")
    store.put_file(str(tmp_path / "clip.mov"), f"{bucket}/clip.mov")
    fetched = []
    fetch = buckets.fetch
    monkeypatch.setattr(
        buckets, "fetch", lambda path, local, **more: fetched.append(path) or fetch(path, local, **more)
    )
    source = f"s3://{bucket}/clip.mov"
    with pytest.raises(UsageError) as raised:
        in_buckets(options, source, f"s3://{bucket}/clip.webm")
    assert str(raised.value).startswith(f"s3://{bucket}/clip.webm: .webm cannot hold the aac")
    assert len(fetched) == 1
    assert in_buckets(options, source, f"s3://{bucket}/out/").failures == []
    assert len(fetched) == 3  # while planning, and for the work


def test_an_empty_object(store, bucket, options):
    store.pipe_file(f"{bucket}/empty.gif", b"")
    (failure,) = in_buckets(options, f"s3://{bucket}/empty.gif", None).failures
    assert failure.error.startswith(f"s3://{bucket}/empty.gif: the file is empty"), failure.error


@pytest.mark.parametrize(
    "words",
    [
        "in -o s3://b/x --watch",
        "s3://b/p.png --watch",
        "s3://b/p.png -o -",
        "- -o s3://b/x.png",
        "rtsp://127.0.0.1/x -o s3://b/x.mp4",
    ],
)
def test_buckets_go_with_files_alone(tmp_path, monkeypatch, capsys, words):
    from basnet_runtime.command import cli

    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["basnet-run", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "goes with files alone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("url", "package"), [("gs://b/p", "gcsfs"), ("az://b/p", "adlfs")])
def test_a_store_whose_package_is_missing(tmp_path, options, url, package):
    with pytest.raises(BackendUnavailable, match=f"pip install '{package}'"):
        in_buckets(options, url, str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("given", "output", "text"),
    [
        ({"video": {"resume": True}}, "s3://b/o", "--resume does not go with"),
        ({}, "s3://b/%06d.png", "numbered pictures"),
    ],
)
def test_what_buckets_do_not_take(options, given, output, text):
    from basnet_runtime.media.video.options import VideoOptions

    given = {name: VideoOptions(**value) for name, value in given.items()}
    with pytest.raises(UsageError, match=text):
        in_buckets(options, "s3://b/p", output, **given)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--cluster", "local")], ids=["alone", "cluster"])
def test_killed_in_mid_run_and_gone_on(tmp_path, store, bucket, words):
    """The command is killed between two chunks; the same one does what is left, and nothing twice."""
    names = [f"{number:02d}-slow.png" for number in range(12)]
    draw(tmp_path / "in", names)
    put_all(store, tmp_path / "in", f"{bucket}/in")
    words = (f"s3://{bucket}/in", "-o", f"s3://{bucket}/out", "--precision", "fp32", *words)
    line = command(*words, "--json", "--chunk", 2)
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__PRELOAD": f'["{FAULTS}"]'}
    first = subprocess.Popen(
        [*HEARS_CTRL_C, *line], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_until(lambda: len(objects(store, f"{bucket}/out")) >= 2, 60)
        os.killpg(first.pid, signal.SIGKILL)
    finally:
        first.kill()
        first.communicate(timeout=20)
    kept = {name: store.info(f"{bucket}/out/{name}")["LastModified"] for name in objects(store, f"{bucket}/out")}
    assert 2 <= len(kept) <= 12
    time.sleep(1)
    done = subprocess.run(line, env=environment, timeout=120, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(objects(store, f"{bucket}/out")) == {name.replace(".png", ".mask.png") for name in names}
    assert {name: store.info(f"{bucket}/out/{name}")["LastModified"] for name in kept} == kept
    again = {each["target"].rpartition("/")[2] for each in json.loads(done.stdout)["results"]}
    assert not again & kept.keys()
