"""The page in a real browser, by the W3C WebDriver protocol: upload, results, comparison, keyboard, errors."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium and chromedriver"
    ),
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
SHOTS = os.environ.get("BASNET_SCREENSHOTS")  # a folder: pictures of the page are kept there, to be looked at


class Browser:
    """One browser session."""

    def __init__(self, address, scheme, width):
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
        if scheme == "dark":
            arguments.append("--force-dark-mode")
        options = {"binary": shutil.which("chromium"), "args": arguments}
        if width < 500:  # narrower than a window of the browser may be
            metrics = {"width": width, "height": 844, "pixelRatio": 2.0}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        self._client = httpx.Client(base_url=address, timeout=60)
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        made = self._client.post("/session", json={"capabilities": wanted}).json()["value"]
        self._session = f"/session/{made['sessionId']}"

    def post(self, path, **body):
        answer = self._client.post(self._session + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def find(self, selector):
        found = self.post("/element", using="css selector", value=selector)
        return f"/element/{found[ELEMENT]}"

    def type(self, selector, text):
        self.post(f"{self.find(selector)}/value", text=text)

    def run(self, script):
        return self.post("/execute/sync", script=f"return {script}", args=[])

    def until(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, self.run("document.body.innerText")
            time.sleep(0.05)

    def shot(self, name):
        if SHOTS:
            import base64

            data = self._client.get(f"{self._session}/screenshot").json()["value"]
            Path(SHOTS, f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self):
        self._client.delete(self._session)
        self._client.close()


@pytest.fixture(scope="module")
def driver():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL) as running:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{address}/status")
                break
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)
        yield address
        running.terminate()


@pytest.fixture
def browse(driver, server):
    @contextmanager
    def opened(scheme="light", width=1100, running=server):
        browser = Browser(driver, scheme, width)
        try:
            browser.post("/url", url=running.url)
            yield browser
        finally:
            browser.close()

    return opened


DONE = "document.getElementById('status').textContent.startsWith('Done')"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 390), ("dark", 390)])
def test_a_picture_is_shown_with_its_result(scheme, width, browse, photo):
    with browse(scheme, width) as page:
        page.shot(f"empty-{scheme}-{width}")
        page.type("#file", str(photo))
        page.until(DONE)
        page.until("document.getElementById('after').naturalWidth === 90")
        assert page.run("document.getElementById('download').download") == "photo.cutout.png"
        assert page.run("document.getElementById('decision').textContent") == "Object found, score 0.960"
        assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") is (scheme == "dark")
        page.shot(f"cutout-{scheme}-{width}")


def test_every_result_can_be_chosen(browse, photo):
    with browse() as page:
        page.type("#file", str(photo))
        page.until(DONE)
        for kind in ("mask", "overlay", "color", "blur"):
            page.run("document.getElementById('download').download = ''")
            page.run(f"document.querySelector('[value={kind}]').click()")
            route = "compose" if kind in ("color", "blur") else kind
            page.until(f"document.getElementById('download').download === 'photo.{route}.png'")
        page.run("document.querySelector('[value=picture]').click()")
        page.until("document.getElementById('status').textContent === 'Choose a background picture.'")
        page.type("#background", str(photo))
        page.until(DONE)


def test_options_change_the_result(browse, photo):
    with browse() as page:
        page.type("#file", str(photo))
        page.run("document.querySelector('[value=mask]').click()")
        page.until("document.getElementById('download').download === 'photo.mask.png'")
        before = page.run("document.getElementById('after').src")
        page.run("document.getElementById('hard').click()")
        page.until(f"document.getElementById('after').src !== '{before}' && {DONE}")
        assert page.run("document.getElementById('threshold-field').hidden") is False


def test_the_comparison_works_by_keyboard(browse, photo):
    with browse() as page:
        page.type("#file", str(photo))
        page.until(DONE)
        page.type("#slider", "\ue014" * 5)  # right
        assert page.run("document.getElementById('slider').value") == "55"
        assert page.run("document.getElementById('compare').style.getPropertyValue('--share')") == "55%"
        page.run("document.activeElement.blur()")
        reached = []
        for _ in range(8):
            keys = [{"type": "keyDown", "value": "\ue004"}, {"type": "keyUp", "value": "\ue004"}]
            page.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])
            reached.append(page.run("document.activeElement.id || document.activeElement.name"))
        assert {"file", "kind", "hard", "feather", "slider", "download"} <= set(reached)


def test_a_refusal_is_shown_in_the_servers_words(browse, photo, tmp_path):
    bad = tmp_path / "notes.jpg"
    bad.write_text("hello")
    with browse() as page:
        page.type("#file", str(photo))
        page.until(DONE)
        page.type("#file", str(bad))
        page.until("document.getElementById('status').classList.contains('error')")
        assert page.run("document.getElementById('status').textContent").startswith("picture: cannot be read")
        assert page.run("document.getElementById('view').hidden")  # not the result of the picture before


def test_a_token_is_asked_for(serve, browse, photo, tmp_path):
    file = tmp_path / "token"
    file.write_text("s3cret")
    with serve(token_file=file) as guarded, browse(running=guarded) as page:
        page.type("#file", str(photo))
        page.until("!document.getElementById('token-field').hidden")
        page.type("#token", "s3cret")
        page.until(DONE)
