"""One client script against our server and against a real Triton that serves what `basnet-export triton` wrote.

The real one: `python3 -m venv pytriton && pytriton/bin/pip install nvidia-pytriton==0.7.0 'numpy<2'`, then run this
file with BASNET_PYTRITON=pytriton. Its wheel holds `tritonserver` 2.51 with the Python backend alone, so that a backend
of twenty lines named `onnxruntime` stands in for the library that is not in it; server, protocol, configuration,
batching and warm-up are Triton's own.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import uvicorn

from basnet_export.triton import TritonConfig, write_triton_model
from basnet_runtime.open import BUILTIN, open_model
from basnet_runtime.serve.app import create_app
from basnet_runtime.serve.config import ServeConfig
from tests.models import discs

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
NAME = BUILTIN.stem
BACKEND = """
import os
import sys

sys.path[:0] = os.environ["BASNET_SITE"].split(":")
import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        # By DLPack: with numpy 2 the backend's own conversions give empty tensors.
        arrays = [np.from_dlpack(backend.get_input_tensor_by_name(request, "image")) for request in requests]
        found = self.session.run(["mask"], {"image": np.concatenate(arrays)})[0]
        with open(os.environ["BASNET_BATCHES"], "a") as file:
            file.write(f"{len(found)}\\n")
        ends = np.cumsum([len(array) for array in arrays])
        parts = [np.ascontiguousarray(part) for part in np.split(found, ends[:-1])]
        return [backend.InferenceResponse([backend.Tensor.from_dlpack("mask", part)]) for part in parts]
"""


@contextmanager
def ours(_folder):
    with open_model(BUILTIN, backend="onnxruntime") as model:
        app = create_app(model, ServeConfig())
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        while not server.started:
            thread.join(0.01)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()
        app.state.service.close()


@contextmanager
def real(folder):
    home = os.environ.get("BASNET_PYTRITON")
    if not home:
        pytest.skip("needs BASNET_PYTRITON, an environment with nvidia-pytriton 0.7.0")
    site = next(Path(home).glob("lib/python3.*/site-packages"))
    python = site.parent.name.removeprefix("python")
    server = folder / "server"
    shutil.copytree(site / "pytriton" / "tritonserver", server)
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    (server / "backends" / "onnxruntime").mkdir()
    (server / "backends" / "onnxruntime" / "model.py").write_text(BACKEND)
    write_triton_model(TritonConfig(sources=(BUILTIN,), output=folder / "repository"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    libraries = f"{site / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"LD_LIBRARY_PATH": libraries, "BASNET_SITE": sysconfig.get_path("purelib")}
    environment["BASNET_BATCHES"] = str(folder / "batches")
    command = [server / "bin" / "tritonserver", f"--model-repository={folder / 'repository'}"]
    command += [f"--backend-directory={server / 'backends'}", "--http-address=127.0.0.1", f"--http-port={port}"]
    command += ["--allow-grpc=false", "--allow-metrics=false"]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/v2/health/ready"):
            assert running.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
        assert max(map(int, (folder / "batches").read_text().split())) > 1  # batches form
    finally:
        running.terminate()
        running.wait(60)


def answers(address):
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module", params=[ours, real], ids=["ours", "triton"])
def address(request, tmp_path_factory):
    with request.param(tmp_path_factory.mktemp(request.param.__name__)) as found:
        yield found


@pytest.fixture(scope="module")
def reference():
    """Prepared pictures, and the masks that our own runtime computes of them."""
    with open_model(BUILTIN, backend="onnxruntime") as model:
        prepared = np.stack([model.prepare(picture.image_HWC) for picture in discs(4)])
        return prepared, model.infer(list(prepared))


def image_of(batch, **options):
    tensor = triton.InferInput("image", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch, **options)
    return [tensor]


@pytest.mark.slow
class TestConformance:
    """What a stock client asks, in the same words of both servers."""

    @pytest.fixture
    def client(self, address):
        with triton.InferenceServerClient(address, concurrency=8, network_timeout=60) as found:
            yield found

    def test_health_and_metadata(self, client):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.is_model_ready(NAME, "1")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        found = client.get_model_metadata(NAME)
        assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 256, 256]}]
        assert found["outputs"] == [{"name": "mask", "datatype": "FP32", "shape": [-1, 1, 256, 256]}]

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
    def test_masks_are_those_of_the_runtime(self, binary, packed, client, reference):
        batch, masks = reference
        wanted = [triton.InferRequestedOutput("mask", binary_data=binary)]
        inputs = image_of(batch[:1], binary_data=binary)
        answer = client.infer(NAME, inputs, outputs=wanted, request_id="a1", request_compression_algorithm=packed)
        assert answer.get_response()["id"] == "a1"
        assert np.abs(answer.as_numpy("mask") - masks[:1]).max() <= 1e-4  # the contract of FP32

    def test_the_client_of_the_repository_gives_the_mask_of_the_runtime(self, address, tmp_path):
        image = discs(1)[0].image_HWC
        cv2.imwrite(str(tmp_path / "photo.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        written = write_triton_model(TritonConfig(sources=(BUILTIN,), output=tmp_path / "repository"))
        command = [sys.executable, written / "client.py", tmp_path / "photo.png", tmp_path / "mask.png", address]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        with open_model(BUILTIN, backend="onnxruntime") as model:
            mask = model.mask(image) * 255
        assert np.abs(cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED) - mask).max() <= 1

    def test_a_batch(self, client, reference):
        batch, masks = reference
        assert np.abs(client.infer(NAME, image_of(batch)).as_numpy("mask") - masks).max() <= 1e-4

    def test_many_at_once(self, client, reference):
        batch, masks = reference
        asked = [client.async_infer(NAME, image_of(batch[index % 4][None])) for index in range(12)]
        for index, request in enumerate(asked):
            assert np.abs(request.get_result().as_numpy("mask") - masks[index % 4]).max() <= 1e-4

    @pytest.mark.parametrize(
        "call",
        [
            lambda client: client.get_model_metadata("other"),
            lambda client: client.get_model_metadata(NAME, "7"),
            lambda client: client.infer("other", image_of(np.zeros((1, 3, 256, 256), np.float32))),
            lambda client: client.infer(NAME, image_of(np.zeros((1, 3, 64, 64), np.float32))),
            lambda client: client.infer(NAME, [triton.InferInput("image", [1, 3, 256, 256], "FP32")]),
        ],
    )
    def test_refusals_are_read_by_the_client(self, call, client):
        with pytest.raises(triton.InferenceServerException) as refused:
            call(client)
        assert refused.value.message()
        assert "parse" not in refused.value.message().lower()
