"""The start lines of docs/cluster.md and deploy/ are run as far as one machine can, TLS included."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from .conftest import draw, results

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "cluster.md").read_text()
SLURM = ROOT / "deploy" / "slurm" / "basnet-run.sbatch"


PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the commands of this environment


def lines(*starts):
    found = [line for line in GUIDE.splitlines() if line.startswith(starts)]
    assert found
    return found


def start_settings(text):
    """NAME=VALUE of all that is exported before a cluster is started, TLS left out."""
    exported = " ".join(re.findall(r"^export (.*?)(?:  #.*)?$", text, re.MULTILINE)).split()
    return {setting for setting in exported if "__COMM__" not in setting}


def run_script(folder, text, **environment):
    """A script in a process group of its own, all of which is ended."""
    process = subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env={**os.environ, "PATH": PATH, **environment},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, told = process.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_start_lines_with_tls(tmp_path):
    draw(tmp_path / "photos", ["a.png", "b.png"])
    scheduler, worker, *_ = lines("dask scheduler", "dask worker")
    command = lines("basnet-run photos -o masks --cluster tcp://SCHEDULER")[0].replace("tcp://", "tls://")
    port = subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout.strip()
    text = [
        "set -euo pipefail",
        *lines("openssl ", "(umask"),
        *lines("export DASK_"),
        f"{scheduler} --protocol tls --host 127.0.0.1 2>/dev/null &",
        f"{worker.replace('tcp://', 'tls://')} --protocol tls --host 127.0.0.1 2>/dev/null &",
        f"{command} --precision fp32 2>told",
        "kill $(jobs -p)",
    ]
    script = "\n".join(text).replace("SCHEDULER:8786", f"127.0.0.1:{port}").replace("--port 8786", f"--port {port}")
    code, told = run_script(tmp_path, script)
    said = (tmp_path / "told").read_text() if (tmp_path / "told").exists() else told
    assert code == 0, said
    assert results(tmp_path / "masks").keys() == {"a.mask.png", "b.mask.png"}
    assert "no authentication" not in said
    assert {oct((tmp_path / name).stat().st_mode & 0o77) for name in ("ca.key", "node.key", "node.pem")} == {"0o0"}


@pytest.mark.slow
def test_lines_of_the_slurm_script(tmp_path):
    """With two processes in place of srun's tasks."""
    draw(tmp_path / "photos", ["a.png", "b.png"])
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text('#!/bin/sh\n"$@" 2>/dev/null &\n"$@" 2>/dev/null &\nwait\n')
    srun.chmod(0o755)
    path = f"{srun.parent}:{PATH}"
    code, told = run_script(tmp_path, f"bash {SLURM} photos masks", SLURM_JOB_ID="7", PATH=path)
    assert code == 0, told
    assert results(tmp_path / "masks").keys() == {"a.mask.png", "b.mask.png"}
    assert not (tmp_path / "scheduler-7.json").exists()
    assert "NOT RUN" in SLURM.read_text()


@pytest.fixture
def stand_ins(tmp_path):
    """Write commands of a line or two that the Slurm script finds before the real ones."""
    (tmp_path / "bin").mkdir()

    def write(**commands):
        for name, text in commands.items():
            path = tmp_path / "bin" / name.replace("_", "-")
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        return {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path / 'bin'}:{PATH}"}

    return write


def test_slurms_warning_ends_the_driver_in_order(tmp_path, stand_ins):
    waits = "while :; do sleep .05; done"
    environment = stand_ins(
        dask='echo {} >"$5"; exec sleep 60',
        srun="exec sleep 60",
        basnet_run=f'trap "sleep .5; echo >ended; exit 130" TERM; echo >began; {waits}',
    )
    script = f"bash {SLURM} a b & until [ -e began ]; do sleep .05; done; kill -TERM $!; wait $!"
    code, told = run_script(tmp_path, script, **environment)
    assert (code, told) == (130, "")
    assert (tmp_path / "ended").exists()


def test_a_scheduler_that_ends_at_once_ends_the_job(tmp_path, stand_ins):
    environment = stand_ins(dask="exit 1", srun="exit 0", basnet_run="exit 0")
    code, told = run_script(tmp_path, f"bash {SLURM} a b", **environment)
    assert code == 3
    assert told.startswith("the scheduler ended before it wrote ")


def test_the_pods_run_the_same_lines():
    text = (ROOT / "deploy" / "kubernetes" / "batch.yaml").read_text()
    assert "NOT RUN" in text
    parts = list(yaml.safe_load_all(text))
    pods = [part["spec"]["template"]["spec"]["containers"][0] for part in parts if "template" in part.get("spec", {})]
    scheduler, worker, driver = (" ".join(pod["command"]) for pod in pods)
    assert scheduler in lines("dask scheduler")
    assert worker.replace("basnet-scheduler", "SCHEDULER") in lines("dask worker")
    assert re.fullmatch(
        r"basnet-run /data/photos -o /data/masks --recursive --cluster tcp://basnet-scheduler:8786", driver
    )
    settings = next(part["data"] for part in parts if part["kind"] == "ConfigMap")
    exported = start_settings(GUIDE)
    assert {f"{name}={value}" for name, value in settings.items()} == exported
    assert start_settings(SLURM.read_text()) == exported
