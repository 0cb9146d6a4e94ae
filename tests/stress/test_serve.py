"""The server under load: memory, refused bodies, slow callers, and its price beside the Python API."""

import http.client
import os
import re
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.stress, pytest.mark.slow]
PICTURE = Path(__file__).parents[2] / "export" / "basnet_export" / "pictures" / "coffee.jpg"
SERVE = "from basnet_runtime.serve.cli import main; main()"
LOOP = """
import sys, time
import basnet_runtime as bn
from basnet_runtime.open import open_model
path, count, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if way == "call":
    model = bn.load()
    def run(count):
        for _ in range(count):
            model(path)
else:  # what a user would write to keep the CPU busy: as many batches in flight as the backend wants
    from collections import deque
    from pathlib import Path
    from basnet_runtime.media.image.pictures import encode_picture, read_picture
    model = open_model()
    postprocess = model.postprocessor()
    def finished(frame, running):
        mask, _ = postprocess(frame, running.result()[0])
        encode_picture(".png", mask)
    def run(count):
        flying = deque()
        for _ in range(count):
            frame = read_picture(Path(path))
            flying.append((frame, model.submit([model.prepare(frame.flattened())])))
            if len(flying) >= model.depth:
                finished(*flying.popleft())
        while flying:
            finished(*flying.popleft())
run(4)
began = time.process_time()
run(count)
print((time.process_time() - began) / count * 1000)
"""


@contextmanager
def served(*options):
    """`basnet-serve` with the built-in model as a process; gives its id and address."""
    command = [sys.executable, "-c", SERVE, "--port", "0", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        address = re.search(r"http://\S+", running.stderr.readline())[0]
        drain = threading.Thread(target=running.stderr.read)  # else its log fills the pipe
        drain.start()
        try:
            while True:
                try:
                    if httpx.get(f"{address}/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield running.pid, address
        finally:
            running.terminate()
            running.wait(60)
            drain.join()


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def cpu_ms(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") * 1000


def ask(address, count, callers):
    """Send `count` pictures by `callers` at once; gives the statuses."""
    data = PICTURE.read_bytes()
    with ThreadPoolExecutor(callers) as pool, httpx.Client(timeout=120) as client:
        return list(pool.map(lambda _: client.post(f"{address}/v1/mask", content=data).status_code, range(count)))


def test_memory_is_flat_over_2000_requests():
    with served() as (pid, address):
        assert set(ask(address, 200, 4)) == {200}
        early = resident(pid)
        assert set(ask(address, 1800, 4)) == {200}
        grown = resident(pid) - early
        print(f"resident: {early:.0f} MB after 200 requests, {grown:+.1f} MB after 2,000")
        assert grown <= 10


def test_bodies_of_200_mb_take_no_memory():
    with served() as (pid, address):
        assert set(ask(address, 20, 4)) == {200}
        before = resident(pid)
        for declared in (True, False):
            content = bytes(200 << 20) if declared else iter([bytes(1 << 20)] * 200)
            with suppress(httpx.WriteError):  # what a client that sends on sees
                assert httpx.post(f"{address}/v1/mask", content=content, timeout=60).status_code == 413
        grown = resident(pid) - before
        print(f"resident: {before:.0f} MB, {grown:+.1f} MB after two bodies of 200 MB")
        assert grown <= 10


def test_slow_callers_are_refused_and_cost_the_others_little():
    data = PICTURE.read_bytes()
    with served() as (_, address), httpx.Client(timeout=60) as client:
        host = address.removeprefix("http://")

        def seconds():
            began = time.perf_counter()
            assert client.post(f"{address}/v1/mask", content=data).status_code == 200
            return time.perf_counter() - began

        def slow(_):
            connection = http.client.HTTPConnection(host, timeout=60)
            connection.putrequest("POST", "/v1/mask")
            connection.putheader("Content-Length", "1000")
            connection.endheaders()
            began = time.monotonic()
            try:
                while time.monotonic() - began < 12:
                    connection.send(b"x")
                    time.sleep(0.5)
            except OSError:
                pass
            answer = connection.getresponse()
            return answer.status

        alone = sorted(seconds() for _ in range(20))[10]
        with ThreadPoolExecutor(4) as pool:
            refused = pool.map(slow, range(4))
            beside = sorted(seconds() for _ in range(20))[10]
            assert list(refused) == [408] * 4
        print(f"median: {alone * 1000:.0f} ms alone, {beside * 1000:.0f} ms beside four slow callers")


def test_the_price_of_a_picture():
    count = 60
    looped = {
        way: float(subprocess.check_output([sys.executable, "-c", LOOP, str(PICTURE), str(count), way], text=True))
        for way in ("call", "submit")
    }
    with served() as (pid, address):
        ask(address, 8, 4)
        for callers in (1, 4, 16):
            before = cpu_ms(pid)
            assert set(ask(address, count, callers)) == {200}
            each = (cpu_ms(pid) - before) / count
            print(
                f"{callers} callers: {each:.1f} ms CPU a picture, {each / looped['submit']:.2f} of submit "
                f"({looped['submit']:.1f} ms), {each / looped['call']:.2f} of model(path) ({looped['call']:.1f} ms)"
            )


def test_it_is_ready_within_two_seconds():
    best = 60.0
    for _ in range(5):
        began = time.perf_counter()
        with served():
            best = min(best, time.perf_counter() - began)
    print(f"ready after {best:.2f} s at best of five starts")
