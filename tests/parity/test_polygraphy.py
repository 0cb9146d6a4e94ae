"""Polygraphy as the second judge: its figures of our FP32 and FP16 files are ours.

It runs in an environment of its own, a Python that BASNET_POLYGRAPHY names, so that no version of it or of ONNX Runtime
binds ours:

    python -m venv judge && judge/bin/pip install polygraphy onnx onnxruntime tensorrt-rtx-cu13
    BASNET_POLYGRAPHY=judge/bin/python pytest tests/parity/test_polygraphy.py
"""

import json
import os
import subprocess

import numpy as np
import pytest

from basnet_export.engine.build import build_engine
from basnet_export.engine.config import BuildConfig
from basnet_runtime.backends.onnxruntime import open_onnxruntime
from basnet_runtime.backends.tensorrt.preflight import read_plan_manifest
from basnet_runtime.machine.installed import has_nvidia_driver, installed_version
from basnet_runtime.open import open_model
from tests.models import discs, exported

JUDGE = os.environ.get("BASNET_POLYGRAPHY")
pytestmark = pytest.mark.skipif(
    not JUDGE, reason="BASNET_POLYGRAPHY names no Python that has polygraphy, onnx and onnxruntime"
)
# What it prints last is one line of JSON.
COMPARE = """
import json, sys
import numpy as np
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator, CompareFunc
one, other, batch = sys.argv[1:]
runners = [OnnxrtRunner(SessionFromOnnx(path, providers=["cpu"]), name=path) for path in (one, other)]
results = Comparator.run(runners, data_loader=[{"image": np.load(batch)}])
compared = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(check_error_stat="max", atol=1))
(found,) = next(iter((compared if isinstance(compared, dict) else compared[0]).values()))
print(json.dumps({"max_abs": float(found["mask"].max_absdiff), "mean_abs": float(found["mask"].mean_absdiff)}))
"""
INSPECT = """
import json, sys
from polygraphy.backend.trt import EngineFromBytes
from polygraphy.exception import PolygraphyException
try:
    engine = EngineFromBytes(open(sys.argv[1], "rb").read())()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    print(json.dumps({name: list(engine.get_tensor_shape(name)) for name in names}))
except PolygraphyException as error:
    print(json.dumps({"reason": str(error)}))
"""


def judged(code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [JUDGE, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_its_figures_are_ours(precision, tmp_path):
    """FP16 against FP32, and FP32 against itself, where both must see nothing."""
    one, other = exported(precision="fp32", graph="tensor"), exported(precision=precision, graph="tensor")
    with open_model(one) as model:
        batch = np.stack([model.prepare(picture.image_HWC) for picture in discs()])
        want = model.infer(list(batch))
    with open_onnxruntime(other, keep=False) as backend:
        apart = np.abs(backend.infer(batch) - want)
    np.save(tmp_path / "batch.npy", batch)
    found, _ = judged(COMPARE, one, other, tmp_path / "batch.npy")
    # Two builds of ONNX Runtime may add in another order.
    assert found["max_abs"] == pytest.approx(float(apart.max()), rel=0.02, abs=1e-6)
    assert found["mean_abs"] == pytest.approx(float(apart.mean()), rel=0.02, abs=1e-7)
    assert (found["max_abs"] > 1e-4) == (precision == "fp16")  # it does see differences


@pytest.mark.skipif(not installed_version("tensorrt_rtx_cu13"), reason="TensorRT for RTX is not installed")
def test_it_looks_into_the_plan(tmp_path):
    """With a GPU it names inputs and outputs; without one its library knows the plan and asks for the driver."""
    plan = build_engine(
        BuildConfig(model=exported(precision="fp16", graph="tensor"), output=tmp_path / "a.plan", flavor="rtx")
    )
    found, printed = judged(INSPECT, plan)
    if has_nvidia_driver():
        manifest, _ = read_plan_manifest(plan)
        shapes = {t.name: [-1 if n is None else n for n in t.shape] for t in (manifest.input, manifest.output)}
        assert found == shapes
    elif "No module named" in printed:
        pytest.skip("BASNET_POLYGRAPHY has no tensorrt-rtx-cu13")
    else:
        assert "Could not deserialize engine" in found["reason"]
        assert "CUDA driver version is insufficient" in printed
        assert "magicTag" not in printed
        (tmp_path / "b.plan").write_bytes(b"no plan" * 1000)
        assert "magicTag" in judged(INSPECT, tmp_path / "b.plan")[1]  # what it says of a file that is no plan
