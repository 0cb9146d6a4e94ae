"""Bounds: queue, body size and time, waiting, token, callers that leave, and the end of the server."""

import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from basnet_runtime.serve import cli
from basnet_runtime.serve.config import ServeConfig
from basnet_torch.errors import UsageError
from tests.processes import HEARS_CTRL_C


def wait_until(true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_refuses_and_says_when_to_come_back(serve, photo):
    data = photo.read_bytes()
    with serve(queue=3) as server, ThreadPoolExecutor(12) as pool, httpx.Client(timeout=60) as client:
        server.backend.free.clear()
        at_once = server.service.model.depth + 1
        futures = [pool.submit(client.post, f"{server.url}/v1/mask", content=data) for _ in range(12)]
        wait_until(lambda: sum(future.done() for future in futures) == 12 - at_once - 3)
        refused = [future.result() for future in futures if future.done()]
        server.backend.free.set()
        answers = [future.result() for future in futures]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert [answer.status_code for answer in answers].count(200) == at_once + 3
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["detail"].startswith("queue: 3 pictures wait, at most 3 may. Try again in ")


def test_a_wait_has_an_end(serve, photo):
    data = photo.read_bytes()
    with serve(wait_seconds=0.2) as server, ThreadPoolExecutor(4) as pool, httpx.Client(timeout=60) as client:
        server.backend.free.clear()
        held = [pool.submit(client.post, f"{server.url}/v1/mask", content=data) for _ in range(2)]
        wait_until(server.service._turns.locked)
        late = client.post(f"{server.url}/v1/mask", content=data)
        server.backend.free.set()
        assert [future.result().status_code for future in held] == [200, 200]
    assert late.status_code == 503
    assert "retry-after" in late.headers
    assert late.json()["detail"] == "wait: no turn within 0.2 s. Try again in 1 s"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused(declared, serve):
    with serve(max_bytes=100_000) as server:
        content = b"x" * 200_000 if declared else iter([b"x" * 50_000] * 4)
        answer = httpx.post(f"{server.url}/v1/mask", content=content)
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("body: larger than 100,000 bytes")


def test_a_body_that_expands_is_refused(serve):
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(bytes(20_000_000)) + packer.flush()
    with serve(max_bytes=100_000) as server:
        answer = httpx.post(f"{server.url}/v1/mask", content=bomb, headers={"content-encoding": "gzip"})
    assert len(bomb) < 100_000
    assert answer.status_code == 413


def test_bodies_are_bounded_together(serve):
    """Many callers with large bodies fill no memory; what has ended counts no longer."""
    with serve(max_bytes=100_000, queue=1) as server, httpx.Client(base_url=server.url) as client:
        with socket.create_connection(("127.0.0.1", server.port)) as holding:
            holding.sendall(b"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n" + bytes(80_000))
            wait_until(lambda: server.service.bodies._held == 80_000)
            refused = client.post("/v1/mask", content=bytes(30_000))
            form = client.post("/v1/mask", files={"image": bytes(30_000)})
            tensors = client.post("/v2/models/brightness/infer", content=bytes(30_000))
        wait_until(lambda: server.service.bodies._held == 0)
        assert client.post("/v1/mask", content=bytes(90_000)).status_code == 422  # no picture, but taken
        assert 'basnet_refused_total{reason="bodies"} 3.0' in client.get("/metrics").text
    assert [answer.status_code for answer in (refused, form, tensors)] == [429, 429, 429]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["detail"].startswith("bodies: more than 100,000 bytes together. Try again in ")
    assert tensors.json()["error"].startswith("bodies: more than 100,000 bytes together. Try again in ")


def test_a_slow_body_is_refused_while_others_are_served(serve, photo):
    with serve(body_seconds=1) as server:
        slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        slow.putrequest("POST", "/v1/mask")
        slow.putheader("Content-Length", "1000")
        slow.endheaders()
        slow.send(b"x")
        assert httpx.post(f"{server.url}/v1/mask", content=photo.read_bytes()).status_code == 200
        answer = slow.getresponse()
        assert answer.status == 408
        assert b"not received within 1 s" in answer.read()
        slow.close()


def test_callers_that_leave_free_their_places(serve, photo, capfd):
    data = photo.read_bytes()
    with serve() as server, httpx.Client(timeout=30) as client:
        server.backend.free.clear()
        leaving = []
        for _ in range(8):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", "/v1/mask", body=data)
            leaving.append(connection)
        wait_until(lambda: server.service._waiting == 8 - server.service.model.depth - 1)
        for connection in leaving:
            connection.close()
        wait_until(lambda: server.service._waiting == 0)
        server.backend.free.set()
        assert client.post(f"{server.url}/v1/mask", content=data).status_code == 200
        computed = sum(server.backend.batches) - 1
        assert computed <= server.service.model.depth
        assert 'basnet_refused_total{reason="left"}' in client.get(f"{server.url}/metrics").text
    logged = capfd.readouterr().err
    assert "Traceback" not in logged
    assert '"status": 499' in logged


def test_a_caller_that_leaves_within_its_body(serve, photo, capfd):
    with serve() as server:
        leaving = socket.create_connection(("127.0.0.1", server.port))
        leaving.sendall(b"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        leaving.close()
        assert httpx.post(f"{server.url}/v1/mask", content=photo.read_bytes()).status_code == 200
        wait_until(lambda: b'reason="left"' in server.service.metrics.text())
    assert "Traceback" not in capfd.readouterr().err


def test_the_token(serve, photo, tmp_path):
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    with serve(token_file=file) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/health/ready").status_code == 200
        assert client.get("/").status_code == 200
        for path in ("/metrics", "/openapi.json", "/v2", "/v2/models/brightness"):
            assert client.get(path).status_code == 401
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            answer = client.post("/v1/mask", content=photo.read_bytes(), headers=given)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        good = {"authorization": "Bearer s3cret"}
        assert client.post("/v1/mask", content=photo.read_bytes(), headers=good).status_code == 200
        assert client.get("/v2", headers=good).json()["name"] == "basnet-serve"


@pytest.mark.parametrize("text", ["", "two words", "grün", None])
def test_a_token_file_that_is_none(text, tmp_path):
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match="token file: "):
        ServeConfig(token_file=file)


@pytest.mark.parametrize(
    "settings", [{"queue": 0}, {"max_bytes": 0}, {"body_seconds": 0}, {"wait_seconds": float("nan")}, {"grace": -1}]
)
def test_settings_that_are_refused(settings):
    with pytest.raises(UsageError, match=f"^{next(iter(settings))} is "):
        ServeConfig(**settings)


def test_while_it_stops_it_is_not_ready(serve, photo):
    with serve() as server, httpx.Client(base_url=server.url) as client:
        server.service.is_draining = True
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").json()["detail"] == "ready: no, the server is stopping"
        assert client.get("/v2/health/ready").json() == {"error": "ready: no, the server is stopping"}
        assert client.post("/v1/mask", content=photo.read_bytes()).status_code == 200


SLOW_SERVER = """
import time
from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.model import SaliencyModel
from basnet_runtime.serve import cli
from basnet_torch.spec import Postprocess, Preprocess

class Slow(FakeBackend):
    def infer(self, batch):
        time.sleep(0.3)
        return super().infer(batch)

def opened(*_, **__):
    return SaliencyModel(Slow(), Preprocess(height=32, width=32), Postprocess(), "slow")

import basnet_runtime.open
basnet_runtime.open.open_model = opened
cli.main()
"""


@contextlib.contextmanager
def process(*options):
    """`basnet-serve` with a slow network as a process of its own; gives it and its address."""
    command = [*HEARS_CTRL_C, sys.executable, "-c", SLOW_SERVER, "--port", "0", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            line = running.stderr.readline()
            yield running, re.search(r"http://\S+", line)[0]
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_is_answered_before_the_end(number, photo):
    data = photo.read_bytes()
    with process() as (running, url), ThreadPoolExecutor(8) as pool:
        ready = [threading.Event() for _ in range(8)]

        def ask(sent):
            with httpx.Client(timeout=60) as client:
                client.get(f"{url}/health/live")
                sent.set()
                return client.post(f"{url}/v1/mask", content=data).status_code

        futures = [pool.submit(ask, sent) for sent in ready]
        assert all(sent.wait(30) for sent in ready)
        time.sleep(0.5)  # all eight are with the server, which takes 0.3 s for each
        running.send_signal(number)
        assert [future.result() for future in futures] == [200] * 8
        assert running.wait(30) == 0
        assert running.stderr.read().endswith("stopped\n")


def test_grace_ends_what_does_not(photo):
    with process("--grace", 1, "--body-seconds", 60) as (running, url):
        host, port = url.removeprefix("http://").split(":")
        stuck = socket.create_connection((host, int(port)))
        stuck.sendall(b"POST /v1/mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert httpx.get(f"{url}/health/ready").status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        stuck.close()


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_that_is_taken(monkeypatch, option):
    monkeypatch.setattr("basnet_runtime.open.open_model", None)  # it is said before
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(cli.app, ["--port", "0", option, str(taken.getsockname()[1])])
    assert result.exit_code == 2
    assert "address already in use" in result.output
    assert option in result.output


def test_a_port_for_metrics():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with process("--metrics-port", port) as (_, url):
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert "basnet_model_info" in httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = CliRunner().invoke(cli.app, ["--port", "0"])
    assert result.exit_code == 3
    assert "pip install 'basnet-deploy[serve]'" in result.output


def test_which_addresses_only_this_machine_reaches():
    assert ServeConfig(host="::1").is_local
    assert not ServeConfig(host="0.0.0.0").is_local


def test_it_needs_no_temporary_folder(client, photo, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/nonexistent")
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir()))
    big = {"image": photo.read_bytes() + bytes(3 << 20)}  # beyond what a form parser would keep in memory
    assert client.post("/v1/mask", files=big).status_code == 200
    wait_until(lambda: len(list(folder.iterdir())) <= before + 2)
