"""Facts before work: a worker that would compute something else, or cannot see the files, is refused by name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from basnet_runtime.cluster import dask_workers
from basnet_runtime.cluster.dask_workers import start_local
from basnet_runtime.cluster.facts import Facts, Probe, Refused, differences, own_versions, worker_facts
from basnet_runtime.command import cluster as cluster_command
from basnet_runtime.command.chunk import Order, greet
from basnet_runtime.open import BUILTIN
from basnet_torch import __version__
from basnet_torch.errors import BackendUnavailable, ModelFileError

from .conftest import FAULTS, draw, results, wait_until


@pytest.fixture
def facts():
    return worker_facts(BUILTIN, device="cpu", runs_on="ONNX Runtime 1.32.0, CPUExecutionProvider, fp32, 2 threads")


def test_what_a_worker_says_of_itself(facts):
    assert facts.product == __version__
    assert facts.model.startswith("basnet-lite.onnx ")
    assert len(facts.model.split()[1]) == 64
    assert facts.precision == "fp32"
    assert "threads" not in facts.runs_on
    assert facts.node.endswith(f":{os.getpid()}")


@pytest.mark.parametrize("name", ["product", "python", "distributed", "model", "precision", "device"])
def test_what_is_refused(facts, name):
    with pytest.raises(
        Refused, match=rf"node far:7: {name} is other, and .* on {facts.node}; all nodes need the same"
    ) as raised:
        differences(replace(facts, node="far:7", **{name: "other"}), facts)
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("name", ["numpy", "instructions", "runs_on"])
def test_what_is_a_note(facts, name):
    (note,) = differences(replace(facts, node="far:7", **{name: "other"}), facts)
    assert note.startswith(f"node far:7: {name} is other, and ")


def test_the_driver_has_no_model(facts):
    assert differences(facts, own_versions(), like=()) == []


def test_probe(tmp_path):
    source, target = tmp_path / "a.png", tmp_path / "out" / ".probe"
    source.write_bytes(b"12345")
    target.parent.mkdir()
    target.write_text("token")
    probe = Probe(sources=((str(source), 5),), targets=(str(target),), token="token")
    probe.check("n")
    with pytest.raises(Refused, match=r"node n: does not see the input .*a.png; mount it there"):
        replace(probe, sources=((str(source), 6),)).check("n")
    with pytest.raises(Refused, match=r"node n: does not see the input .*b.png"):
        replace(probe, sources=((str(tmp_path / "b.png"), 5),)).check("n")
    with pytest.raises(Refused, match=r"node n: does not see the output folder .*out; mount"):
        replace(probe, token="of another run").check("n")
    with pytest.raises(Refused, match=r"node n: does not see the output folder .*gone; mount"):
        replace(probe, targets=(str(tmp_path / "gone" / ".probe"),)).check("n")


def started(*environments):
    import dask

    with dask.config.set({"distributed.worker.preload": [str(FAULTS)]}):
        return start_local(environments)


def other(**facts):
    return {"BASNET_TEST_FACTS": json.dumps(facts)}


def test_another_product_ends_the_run_before_any_work(tmp_path, spread):
    draw(tmp_path / "in", ["a.png"])
    with started(other(product="0.0.9", node="old:1")) as cluster, pytest.raises(Refused) as raised:
        spread(cluster=cluster.scheduler_address)
    assert str(raised.value).startswith(f"node old:1: product is 0.0.9, and {__version__} on ")
    assert results(tmp_path / "out") == {}


def test_another_instruction_set(tmp_path, spread):
    """A note, and with --same-bytes an error; two models are refused whichever answers first."""
    draw(tmp_path / "in", [f"{number}-slow.png" for number in range(24)])  # one worker must not do all
    with started({}, other(instructions="none of this kind", node="small:1")) as cluster:
        where = cluster.scheduler_address
        summary = spread(cluster=where, chunk=1)
        assert len(summary.results) == 24
        (note,) = [note for note in summary.notes if "instructions" in note]
        assert "small:1" in note
        assert note.endswith("; bytes may differ by a level")
        draw(tmp_path / "in", [f"{number}-slow.png" for number in range(24, 48)])
        with pytest.raises(Refused, match=r"instructions .*; without --same-bytes it may work"):
            spread("other", cluster=where, same_bytes=True)


@contextmanager
def joined(cluster, **environment):
    """A worker of its own that joins the cluster."""
    words = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--nthreads", "1", "--no-dashboard"]
    words += ["--memory-limit", "0", "--host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(words, env={**os.environ, **environment}, **quiet)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(timeout=20)


def test_one_that_joins_late_is_asked_too(tmp_path, spread):
    draw(tmp_path / "in", [f"{number}-slow.png" for number in range(60)])
    late = {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(FAULTS)])}
    late |= other(model="another 0123", node="late:1")
    with (
        started({}) as cluster,
        joined(cluster, **late),
        pytest.raises(Refused, match=r"node late:1: model is another 0123, and basnet-lite"),
    ):
        spread(cluster=cluster.scheduler_address, chunk=1)
    assert len(results(tmp_path / "out")) < 60


def test_one_that_dies_while_it_joins_does_not_end_the_run(tmp_path, spread):
    draw(tmp_path / "in", [f"{number}-slow.png" for number in range(20)])
    dies = {"DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(FAULTS)]), "BASNET_TEST_DIES": "1"}
    told = []
    with started({}) as cluster, joined(cluster, **dies):
        wait_until(lambda: len(cluster.scheduler.workers) == 2)
        assert len(spread(cluster=cluster.scheduler_address, chunk=1, tell=told.append).results) == 20
    assert any("gives no answer" in line for line in told)


def test_one_that_is_stopped_holds_nobody_up(tmp_path, spread, monkeypatch):
    monkeypatch.setattr(dask_workers, "_MEET_SECONDS", 1.5)
    draw(tmp_path / "in", [f"{number}-slow.png" for number in range(12)])
    told = []
    with started({}, {}) as cluster:
        wait_until(lambda: len(cluster.scheduler.workers) == 2)
        os.kill(cluster.workers[0].pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert len(spread(cluster=cluster.scheduler_address, chunk=1, tell=told.append).results) == 12
            assert time.monotonic() - began < 30  # after a minute the scheduler would forget it
        finally:
            os.kill(cluster.workers[0].pid, signal.SIGCONT)
    assert sum("gives no answer (none in 2 s); it gets no work until it does" in line for line in told) == 1


def test_one_that_never_answers_is_not_waited_for(tmp_path, spread, monkeypatch):
    monkeypatch.setattr(dask_workers, "_MEET_SECONDS", 1)
    monkeypatch.setattr(cluster_command, "_PATIENCE", 1.5)
    draw(tmp_path / "in", ["a.png"])
    with started({}) as cluster:
        wait_until(lambda: cluster.scheduler.workers)
        os.kill(cluster.workers[0].pid, signal.SIGSTOP)
        try:
            with pytest.raises(BackendUnavailable, match="no worker for 2 s"):
                spread(cluster=cluster.scheduler_address)
        finally:
            os.kill(cluster.workers[0].pid, signal.SIGCONT)


def test_a_node_without_the_product(tmp_path, spread):
    draw(tmp_path / "in", ["a.png"])
    broken = tmp_path / "broken" / "basnet_runtime"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('not here')")
    with (
        start_local([]) as cluster,
        joined(cluster, PYTHONPATH=str(broken.parent)),
        pytest.raises(BackendUnavailable) as raised,
    ):
        spread(cluster=cluster.scheduler_address)
    assert "cannot work (ImportError('not here')); install the same product there" in str(raised.value)


def test_a_node_whose_model_does_not_open(tmp_path, spread, cluster):
    draw(tmp_path / "in", ["a.png"])
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"node .*:\d+: .*model.onnx") as raised:
        spread(model=tmp_path / "model.onnx")
    assert raised.value.exit_code == 1  # as on one machine


def test_a_node_that_does_not_see_the_model(tmp_path, options):
    config = options("out", cluster="tcp://h:1", model=tmp_path / "gone.onnx")
    order = Order(run="r", config=config, local=False, probe=Probe(), expected=Facts(node="the driver"))
    with pytest.raises(Refused, match=r"node .*:\d+: does not see the model .*gone.onnx; mount it there"):
        greet(order)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_nanny_for_each_gpu(monkeypatch, options, device):
    """Each worker sees its own GPU alone; after a death too, since the nanny has the environment."""
    from distributed import Client

    from basnet_runtime.command.cluster import slots_of
    from basnet_torch.device import Device
    from basnet_torch.errors import UsageError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    slots = slots_of(options("out", cluster="local", device=Device.parse(device)))
    wanted = ["4", "7"] if device == "cuda" else ["7"]
    with start_local(slots) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(len(wanted), timeout=20)
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(seen.values()) == wanted
        nanny = cluster.workers[0]
        before = nanny.pid
        os.kill(before, 9)
        wait_until(lambda: nanny.pid not in (None, before))
        client.wait_for_workers(len(wanted), timeout=20)
        wait_until(lambda: sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES", on_error="ignore").values()) == wanted)
    with pytest.raises(UsageError, match=r"one worker a GPU"):
        slots_of(options("out", cluster="local", device=Device.parse("cuda:2"), workers=3))


def other_model(path):
    """The built-in model with other weights."""
    import onnx

    model = onnx.load(BUILTIN)
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2}
    for tensor in model.graph.initializer:
        if tensor.name in biases:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 0.5, tensor.name))
    onnx.save(model, path)


def test_a_model_that_is_replaced_between_two_runs(tmp_path, spread, alone):
    """Workers outlive runs; the second run is of the new file."""
    draw(tmp_path / "in", ["a.png", "b.png"])
    model = tmp_path / "model.onnx"
    shutil.copy(BUILTIN, model)
    spread("before", model=model)
    other_model(model)
    spread("after", model=model)
    alone("alone", model=model)
    assert results(tmp_path / "after") == results(tmp_path / "alone") != results(tmp_path / "before")


def test_the_drivers_own_model_is_the_measure(tmp_path, spread, monkeypatch):
    draw(tmp_path / "in", ["a.png"])
    model = tmp_path / "model.onnx"
    shutil.copy(BUILTIN, model)
    monkeypatch.setattr(cluster_command, "model_fact", lambda path: f"{path.name} 0123")
    with pytest.raises(Refused, match=r"node .*: model is model.onnx \w{64}, and model.onnx 0123 on the driver; all"):
        spread(model=model)
