"""A server in a thread of this process, over a network that can be held back."""

import asyncio
import gc
import threading
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import uvicorn

from basnet_runtime.backends.fake import FakeBackend
from basnet_runtime.model import SaliencyModel
from basnet_runtime.serve.app import create_app
from basnet_runtime.serve.config import ServeConfig
from basnet_torch.spec import Postprocess, Preprocess


class HeldBackend(FakeBackend):
    """Waits in each batch while it is held; `batches` are the sizes that ran."""

    def __init__(self):
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Semaphore(0)
        self.batches = []

    def infer(self, batch):
        self.entered.release()
        assert self.free.wait(30)
        self.batches.append(len(batch))
        return super().infer(batch)


class Running:
    """One server: `url`, its `backend`, and its `service`."""

    def __init__(self, config, backend):
        model = SaliencyModel(backend, Preprocess(height=32, width=32), Postprocess(), "brightness.onnx")
        self.backend = backend
        self.app = create_app(model, config)
        self.service = self.app.state.service
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off")
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            self._thread.join(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.backend.free.set()
        self._server.should_exit = True
        self._thread.join()
        self.service.close()
        gc.collect()  # uvicorn's sockets, before a later test is blamed for them


@pytest.fixture
def serve():
    """Start a server with these settings, in a `with` block."""

    @contextmanager
    def started(backend=None, **settings):
        with Running(ServeConfig(**settings), backend or HeldBackend()) as running:
            yield running

    return started


@pytest.fixture(scope="module")
def server():
    """One server of default settings for all tests of a module."""
    with Running(ServeConfig(), HeldBackend()) as running:
        yield running


@pytest.fixture
def client(server):
    """A client of `server`."""
    with httpx.Client(base_url=server.url, timeout=30) as found:
        yield found


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A JPEG file with a bright disc, EXIF orientation and all."""
    import pyvips

    y, x = np.mgrid[:60, :90]
    image = np.full((60, 90, 3), 30, np.uint8)
    image[np.hypot(y - 30, x - 40) < 20] = (250, 240, 230)
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    pyvips.Image.new_from_array(image).copy(interpretation="srgb").write_to_file(str(path), Q=90)
    return path
