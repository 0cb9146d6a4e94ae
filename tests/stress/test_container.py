"""The image, built by buildah on a base of Debian packages, run with a read-only root: size, user, masks, silence."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from basnet_runtime.open import BUILTIN

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "export" / "basnet_export" / "pictures" / "coffee.jpg"
RUN = "from basnet_runtime.command.cli import main; main()"
TOOLS = ("buildah", "mmdebstrap", "unshare", "chroot")
# What a runtime makes of --read-only: the image's files, none of which can be written.
READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount --bind /proc "$1/proc"
mount --bind /dev "$1/dev"
root=$1; shift
exec chroot --userspec=10001:10001 "$root" /usr/bin/env -i "$@"
"""
pytestmark = [
    pytest.mark.stress,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason=f"needs root and {TOOLS}"),
]


def call(*command, **variables):
    """Run a command and give what it printed on stdout."""
    done = subprocess.run(
        [*map(str, command)], env=os.environ | variables, check=True, text=True, stdout=subprocess.PIPE, timeout=900
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of images of its own, which ends with the tests."""
    folder = tmp_path_factory.mktemp("store")
    configuration = folder / "storage.conf"
    configuration.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_STORAGE_CONF", str(configuration))
        patch.setenv("BUILDAH_ISOLATION", "chroot")
        yield folder
        call("buildah", "rm", "--all")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(store):
    base = store / "base.tar"
    leave_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    call("mmdebstrap", "--quiet", "--variant=minbase", *leave_out, "bookworm", base)
    certificates = {"CA": os.environ["SSL_CERT_FILE"]} if "SSL_CERT_FILE" in os.environ else {}
    said = call(ROOT / "containers" / "build.sh", TOOL="buildah", BASE_TAR=str(base), **certificates)
    return said.splitlines()[-1].removeprefix("built ")


@pytest.fixture(scope="module")
def container(image):
    return call("buildah", "from", "--pull-never", image)


@pytest.fixture
def data(tmp_path):
    """A folder for /data that user 10001 may write to, with the picture and a home and temporary folder."""
    shutil.copy(PICTURE, tmp_path)
    for folder in (tmp_path, tmp_path / "home", tmp_path / "tmp"):
        folder.mkdir(exist_ok=True)
        shutil.chown(folder, 10001, 10001)
    return tmp_path


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    """The mask that `basnet-run` writes outside."""
    path = tmp_path_factory.mktemp("outside") / "mask.png"
    call(sys.executable, "-c", RUN, PICTURE, "--engine", BUILTIN, "--backend", "onnxruntime", "--output", path)
    return path.read_bytes()


def asked(port):
    """The server's answer; None while it is not there yet."""
    try:
        return httpx.post(f"http://127.0.0.1:{port}/v1/mask", content=PICTURE.read_bytes(), timeout=60)
    except httpx.TransportError:
        return None


def test_its_size(image, store):
    (found,) = json.loads(call("buildah", "images", "--json", image))
    archive = store / "image.tar"
    call("buildah", "push", "--quiet", image, f"oci-archive:{archive}:{image}")
    packed = archive.stat().st_size / 1e6
    print(f"image: {found['size']}, packed {packed:.0f} MB")
    size, unit = found["size"].split()
    assert unit == "MB"
    assert float(size) <= 700
    assert packed <= 270


def test_basnet_run_by_name_gives_the_mask_from_outside(container, data, mask):
    """And leaves nothing in home and temporary folder, where libraries keep what they report."""
    places = ("--env", "HOME=/data/home", "--env", "TMPDIR=/data/tmp")
    call("buildah", "run", *places, "--volume", f"{data}:/data", container, "--", "basnet-run", "coffee.jpg")
    assert (data / "coffee.mask.png").read_bytes() == mask
    assert (data / "coffee.mask.png").stat().st_uid == 10001
    assert [*(data / "home").iterdir(), *(data / "tmp").iterdir()] == []


def test_basnet_doctor_by_name(container):
    lines = [line.split() for line in call("buildah", "run", container, "--", "basnet-doctor").splitlines()]
    assert {"basnet-deploy", "pictures", "video", "onnxruntime"} <= {line[1] for line in lines if line[0] == "ok"}


def test_the_default_command_serves_with_a_read_only_root(container, mask):
    config = json.loads(call("buildah", "inspect", container))["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    inside = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", call("buildah", "mount", container), *config["Env"]]
    assert call(*inside, "sh", "-c", "touch /x /tmp/x /cache/x 2>/dev/null || id -u") == "10001"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*inside, *config["Cmd"], "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command) as running:
        try:
            end = time.monotonic() + 60
            while not (answer := asked(port)):
                assert running.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        finally:
            running.terminate()
        assert running.wait(60) == 0
    assert answer.content == mask
