"""Long stress tests run under BASNET_STRESS=1, which `make stress` sets."""

import os

import pytest


def pytest_collection_modifyitems(items):
    if os.environ.get("BASNET_STRESS") != "1":
        for item in items:
            if item.get_closest_marker("stress"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; make stress runs it"))
