"""The built-in model in both forms, and the CUDA device that `gpu` tests need."""

from __future__ import annotations

import os

import pytest

from basnet_runtime.open import BUILTIN


@pytest.fixture(scope="session")
def lite_onnx():
    return BUILTIN


@pytest.fixture(scope="session")
def lite_checkpoint():
    return BUILTIN.with_suffix(".safetensors")


@pytest.fixture
def cuda():
    """`cuda` where there is such a device; else skips, or fails under BASNET_REQUIRE_GPU=1."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("BASNET_REQUIRE_GPU") == "1":
        pytest.fail("BASNET_REQUIRE_GPU=1 and torch sees no CUDA device")
    pytest.skip("no CUDA device")
