"""Pictures over HTTP: equal to `basnet-run` byte for byte; what is refused, and in which words."""

import gzip
import io
import json
import re
import zlib
from unittest.mock import Mock

import httpx
import numpy as np
import pytest

from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.run import run
from basnet_runtime.kinds import OutputKind
from basnet_runtime.model import SaliencyModel
from basnet_torch.spec import Postprocess, Preprocess

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def command(monkeypatch, tmp_path, photo):
    """What `basnet-run` with the same network writes for the photo."""

    def written(kind, suffix, **options):
        model = SaliencyModel(FakeBackend(), Preprocess(height=32, width=32), Postprocess(), "brightness")
        monkeypatch.setattr("basnet_runtime.command.run.opened_model", lambda _: model)
        target = tmp_path / f"out{suffix}"
        config = RunConfig(
            inputs=[str(photo)], output=str(target), kind=OutputKind.parse(kind), overwrite=True, **options
        )
        assert not run(config, Mock()).failures
        return target.read_bytes()

    return written


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
@pytest.mark.parametrize("kind", ["mask", "cutout", "overlay"])
def test_results_are_those_of_the_command(kind, suffix, client, command, photo):
    answer = client.post(f"/v1/{kind}", params={"format": suffix[1:]}, content=photo.read_bytes())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"image/{suffix[1:]}"
    assert (answer.headers["x-salient"], answer.headers["x-salience-score"]) == ("true", "0.9596")
    assert answer.content == command(kind, suffix)


def test_options_are_those_of_the_command(client, command, photo):
    options = {"threshold": 0.4, "feather": 2.0, "refine_edges": True, "empty_weak": True}
    answer = client.post("/v1/mask", params=options, files={"image": photo.read_bytes()})
    assert answer.content == command("mask", ".png", **options)
    assert answer.content != command("mask", ".png")


@pytest.mark.parametrize("kind", ["side", "color:#20c060", "blur"])
def test_compose(kind, client, command, photo):
    answer = client.post("/v1/compose", params={"kind": kind, "format": "jpg"}, content=photo.read_bytes())
    assert answer.content == command(kind, ".jpg")


def test_a_background_is_a_form_field(client, command, photo, tmp_path):
    import pyvips

    background = tmp_path / "back.png"
    pyvips.Image.new_from_array(np.full((20, 20, 3), (10, 200, 30), np.uint8)).write_to_file(str(background))
    files = {"image": photo.read_bytes(), "background": background.read_bytes()}
    assert client.post("/v1/compose", files=files).content == command(f"image:{background}", ".png")


def test_a_compressed_body(client, photo):
    plain = client.post("/v1/mask", content=photo.read_bytes()).content
    packed = client.post("/v1/mask", content=gzip.compress(photo.read_bytes()), headers={"content-encoding": "gzip"})
    assert packed.content == plain


def refusal(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert "/proc" not in body["detail"]
    assert "Traceback" not in answer.text
    return answer.status_code, body["detail"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"threshold": 0}, "threshold: input should be greater than 0"),
        ({"threshold": 2}, "threshold: input should be less than or equal to 1"),
        ({"threshold": "nan"}, "threshold: input should be a finite number"),
        ({"feather": -1}, "feather: "),
        ({"format": "gif"}, "format: input should be 'png', 'jpg', 'webp' or 'tiff'"),
        ({"page": 0}, "page: "),
        ({"thresold": 0.5}, "thresold: extra inputs are not permitted"),
        ({"page": 3}, "picture: "),
    ],
)
def test_options_that_are_refused(query, said, client, photo):
    status, detail = refusal(client.post("/v1/mask", params=query, content=photo.read_bytes()))
    assert status == 422
    assert detail.startswith(said)


def test_transparency_in_jpeg_is_refused_as_by_the_command(client, photo):
    status, detail = refusal(client.post("/v1/cutout?format=jpg", content=photo.read_bytes()))
    assert status == 422
    assert "holds no transparency" in detail


@pytest.mark.parametrize("kind", ["image:/etc/hostname", "image:x", "camera", "mask"])
def test_no_file_of_the_server_is_read(kind, client, photo):
    status, detail = refusal(client.post("/v1/compose", params={"kind": kind}, content=photo.read_bytes()))
    assert (status, detail) == (
        422,
        "kind: must be side, color:#rrggbb or blur. Send a background as the form field background",
    )


def form(*parts):
    body = b"".join(
        b'--x\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name, extra, data)
        for name, extra, data in parts
    )
    return {"content": body + b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}


FILE = b'; filename="a.jpg"'


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"content": b""}, 422, "picture: "),
        ({"content": b"hello"}, 422, "picture: cannot be read"),
        ({"content": b"{}", "headers": {"content-type": "application/json"}}, 415, "content type: application/json"),
        ({"content": b"x", "headers": {"content-encoding": "br"}}, 415, "content encoding: br"),
        ({"content": b"hello", "headers": {"content-encoding": "gzip"}}, 400, "body: it is no valid gzip"),
        ({"content": gzip.compress(b"a" * 99)[:-4], "headers": {"content-encoding": "gzip"}}, 400, "body: its gzip"),
        ({"content": gzip.compress(b"a") * 2, "headers": {"content-encoding": "gzip"}}, 400, "body: something comes"),
        ({"content": zlib.compress(b"a") + b"x", "headers": {"content-encoding": "deflate"}}, 400, "body: something"),
        (form((b"image", b"", b"http://127.0.0.1/x.jpg")), 422, "form field image: is text"),
        (form((b"url", b"", b"http://127.0.0.1/x.jpg")), 422, "form field: 'url'"),
        (form((b"image", FILE, b"x"), (b"image", FILE, b"y")), 422, "form field image: is there twice"),
        (form((b"background", FILE, b"x")), 422, "form field image: is missing"),
        (form((b"image", FILE, b"x"), (b"background", FILE, b"y")), 422, "form field background: is for"),
        ({"content": b"--y", "headers": {"content-type": "multipart/form-data"}}, 400, "form: "),
        ({"content": b"rubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "form: "),
    ],
)
def test_bodies_that_are_refused(sent, status, said, client):
    found, detail = refusal(client.post("/v1/mask", **sent))
    assert (found, detail.startswith(said)) == (status, True), detail


def test_damaged_pictures_are_refused_in_the_commands_words(client, photo):
    data = photo.read_bytes()
    status, detail = refusal(client.post("/v1/mask", content=data[: len(data) // 2]))
    assert status == 422
    assert detail.startswith("picture: ")


def test_too_many_pixels(serve, photo):
    with serve(max_pixels=5_000) as server:
        status, detail = refusal(httpx.post(f"{server.url}/v1/mask", content=photo.read_bytes()))
    assert status == 422
    assert "above the limit of 0.005 (--max-pixels)" in detail


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/docs", "/redoc"])
def test_what_is_not_there(path, client):
    assert refusal(client.get(path))[0] == 404


def test_the_wrong_method(client):
    assert refusal(client.get("/v1/mask")) == (405, "GET /v1/mask: method not allowed")


def test_a_failing_network_is_a_500_without_a_traceback(serve, photo, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    class Failing(FakeBackend):
        def infer(self, batch):
            raise RuntimeError("secret /path")

    failing = Failing()
    failing.free = type("Free", (), {"set": staticmethod(lambda: None)})
    with serve(failing) as server:
        status, detail = refusal(httpx.post(f"{server.url}/v1/mask", content=photo.read_bytes()))
        assert httpx.get(f"{server.url}/health/live").status_code == 200
    assert (status, detail) == (500, "unexpected: RuntimeError. The server's log says where its traceback is")
    log = tmp_path / "basnet-deploy" / "unexpected.log"
    assert f"traceback in {log}" in capfd.readouterr().err
    assert "secret /path" in log.read_text()


def test_log_lines_are_json_without_names(client, photo, capfd):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.post("/v1/mask", files={"image": ("holiday.jpg", photo.read_bytes())}, headers={"traceparent": parent})
    client.get("/health/live")
    line = json.loads(re.findall(r"^\{.*\}$", capfd.readouterr().err, re.MULTILINE)[-1])
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert (line["route"], line["status"], line["pixels"], line["salient"]) == ("/v1/mask", 200, 5400, True)
    assert {"id", "ms", "wait_ms", "network_ms", "bytes", "score"} <= set(line)
    assert "holiday" not in str(line)
    assert "127.0.0.1" not in str(line)


def test_log_clients(serve, photo, capfd):
    with serve(log_clients=True) as server:
        httpx.post(f"{server.url}/v1/mask", content=photo.read_bytes())
    assert '"client": "127.0.0.1"' in capfd.readouterr().err


def test_metrics(client, photo):
    client.post("/v1/mask", content=photo.read_bytes())
    client.post("/v1/mask", content=b"x")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    text = answer.text
    assert 'basnet_requests_total{route="/v1/mask",status="200"}' in text
    assert 'basnet_refused_total{reason="422"}' in text
    stages = ("decode", "preprocess", "network", "postprocess", "compose", "encode", "wait", "read")
    assert all(f'basnet_stage_seconds_count{{stage="{stage}"}}' in text for stage in stages)
    assert 'basnet_model_info{description="fake backend",model="brightness.onnx"} 1.0' in text
    assert float(re.search(r"^basnet_resident_bytes (\S+)$", text, re.MULTILINE)[1]) > 1e6
    assert "basnet_batch_size_count" in text
    assert "\nbasnet_pictures_waiting 0.0" in text
    assert "\nbasnet_pictures_in_flight 0.0" in text


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(client):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"https?://", answer.text)


def test_the_openapi_document_describes_bodies(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/mask", "/v1/cutout", "/v1/overlay", "/v1/compose", "/health/live", "/health/ready", "/metrics"} == set(
        paths
    )
    body = paths["/v1/compose"]["post"]["requestBody"]["content"]
    assert set(body["multipart/form-data"]["schema"]["properties"]) == {"image", "background"}
    assert set(paths["/v1/mask"]["post"]["responses"]) >= {"200", "408", "413", "422", "429", "503"}


def test_the_answer_is_a_picture(client, photo):
    import pyvips

    answer = client.post("/v1/cutout", content=photo.read_bytes())
    assert answer.content.startswith(PNG)
    image = pyvips.Image.new_from_buffer(answer.content, "")
    assert (image.width, image.height, image.bands) == (90, 60, 4)
    assert io.BytesIO(answer.content).read(8) == PNG
