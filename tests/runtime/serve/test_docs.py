"""The calls that docs/serve.md shows are run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[3] / "docs" / "serve.md"
ADDRESS = "127.0.0.1:8000"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def here(text, server):
    return text.replace(ADDRESS, f"127.0.0.1:{server.port}").replace("basnet-lite-frames", "brightness-frames")


@pytest.fixture
def folder(tmp_path, photo, monkeypatch):
    for name in ("photo.jpg", "beach.jpg"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_curl(server, folder):
    if subprocess.run(["sh", "-c", "command -v curl"], check=False, capture_output=True).returncode:
        pytest.skip("needs curl")
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl")]
    assert len(lines) == 2
    for line in lines:
        subprocess.run(["sh", "-c", here(line, server).replace("curl", "curl -sf", 1)], check=True)
    assert (folder / "photo.png").stat().st_size > 100
    assert (folder / "composed.png").stat().st_size > 100


def test_python(server, folder):
    pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    own, stock = (here(block, server) for block in blocks("python"))
    answer = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("true ")
    code = f"{stock}\nassert mask.shape == (1, 48, 64), mask.shape"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_javascript_names_routes_and_fields_that_are_there(client):
    (script,) = blocks("javascript")
    route = re.search(r'fetch\("([^"]+)"', script)[1]
    assert route in client.get("/openapi.json").json()["paths"]
    assert 'form.append("image"' in script
