"""What depends on the CPU's instruction sets, on CPUs of four kinds: the answers, who refuses what, and the kernels."""

import os
import subprocess
import sys

import numpy as np
import pytest

from basnet_runtime import doctor
from basnet_runtime.backends import onnxruntime as ort
from basnet_runtime.backends import openvino, pytorch
from basnet_runtime.backends.cache import optimized_model_path
from basnet_runtime.machine.cpu_features import processor_flags, why_no_bf16, why_no_int8
from basnet_runtime.open import BUILTIN, BUILTIN_INT8, builtin_model, open_model
from basnet_torch.errors import BackendUnavailable
from tests.cpus import CPUS, HAS_BF16, HAS_INT8, kernels_of, runs_here
from tests.models import checkpoint_file, disc_checkpoint, discs, exported, says_int8

KINDS = pytest.mark.parametrize("kind", CPUS)
IMAGE = discs()[0].image_HWC
# What an external process computes, for masks of the same network by other kernels
MASKS = """
import sys
from pathlib import Path
import numpy as np
from basnet_runtime.open import open_model
image = np.load(sys.argv[1])
found = {}
for backend, path in (("pytorch", sys.argv[2]), ("openvino", sys.argv[3]), ("onnxruntime", sys.argv[3])):
    with open_model(Path(path), backend=backend, threads=1) as model:
        found[backend] = model.mask(image)
np.savez(sys.argv[4], **found)
"""


@KINDS
def test_what_a_cpu_has(kind, cpu):
    cpu(kind)
    assert processor_flags() == frozenset(CPUS[kind].split())
    assert (why_no_int8(machine="x86_64") is None) == (kind in HAS_INT8)
    assert (why_no_bf16() is None) == (kind in HAS_BF16)
    assert doctor._examine_cpu().detail.endswith("built in") == (kind in HAS_BF16)


def test_a_cpu_that_is_not_x86_or_says_nothing(tmp_path):
    (tmp_path / "arm").write_text("Features : asimd\n")
    assert why_no_int8(tmp_path / "arm", "aarch64") is None
    assert "cannot be confirmed" in why_no_int8(tmp_path / "none", "AMD64")
    assert "cannot be confirmed" in why_no_bf16(tmp_path / "none")


@KINDS
def test_the_builtin_model_runs_on_every_cpu(kind, cpu):
    """In INT8 where it is exact; its kernels are this CPU's."""
    cpu(kind)
    assert builtin_model() == (BUILTIN_INT8 if kind in HAS_INT8 else BUILTIN)
    if kind in HAS_INT8:
        return
    with open_model(threads=1) as model:
        assert "int8" not in model.backend.description
        assert np.isfinite(model.mask(IMAGE)).all()


@KINDS
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_is_refused_where_sums_saturate(kind, backend, cpu, tmp_path):
    cpu(kind)
    opened = {"onnxruntime": ort.open_onnxruntime, "openvino": openvino.open_openvino}[backend]
    path = says_int8(tmp_path)
    if kind in HAS_INT8:
        opened(path, threads=1, stored="int8").close()
        return
    with pytest.raises(BackendUnavailable, match=r"int8 on the CPU: this CPU has no VNNI, .*; run the model exp"):
        opened(path, threads=1, stored="int8")


@KINDS
def test_bf16_is_refused_where_it_would_be_emulated(kind, cpu, monkeypatch):
    """PyTorch takes the program's word; OpenVINO gives its own, and the program says why."""
    cpu(kind)
    if kind in HAS_BF16:
        pytorch.open_pytorch(disc_checkpoint(), threads=1, precision="bf16").close()
        return
    with pytest.raises(BackendUnavailable, match="bf16 on the CPU: this CPU has neither avx512_bf16 nor amx"):
        pytorch.open_pytorch(disc_checkpoint(), threads=1, precision="bf16")
    path, ov = exported(precision="fp32", graph="tensor"), openvino._import_openvino()
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(BackendUnavailable, match="bf16 on the CPU: this CPU has neither avx512_bf16 nor amx"):
        openvino.open_openvino(path, threads=1, precision="bf16")


def test_graphs_are_kept_by_kind(cpu):
    kept = set()
    for kind in CPUS:
        cpu(kind)
        kept.add(optimized_model_path(BUILTIN, by="x"))
    assert len(kept) == len(CPUS)


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """The network's masks by the kernels of a kind, computed in a process of its own: libraries choose at import."""
    folder = tmp_path_factory.mktemp("kernels")
    np.save(folder / "image.npy", IMAGE)

    def computed(kind):
        said = kernels_of(kind) if kind else {}
        free = {name: value for name, value in os.environ.items() if name not in kernels_of("avx2")}
        files = folder / "image.npy", checkpoint_file(), exported(precision="fp32", graph="tensor"), folder / "out.npz"
        command = [sys.executable, "-c", MASKS, *map(str, files)]
        done = subprocess.run(command, env={**free, **said}, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        with np.load(folder / "out.npz") as found:
            return dict(found)

    return computed, computed("")


@pytest.mark.parametrize("kind", ["avx2", "avx2-vnni", "avx512"])
def test_masks_are_alike_by_the_kernels_of_every_kind(kind, masks):
    if not runs_here(kind):
        pytest.skip(f"this CPU has less than {kind}")
    computed, here = masks
    for backend, mask in computed(kind).items():
        np.testing.assert_allclose(mask, here[backend], rtol=0, atol=1e-4, err_msg=backend)
        np.testing.assert_allclose(mask, here["pytorch"], rtol=0, atol=1e-3, err_msg=backend)
