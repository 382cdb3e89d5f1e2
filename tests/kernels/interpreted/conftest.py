"""Without the interpreter these tests run on a GPU: see test_interpreted.py."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    from tests.kernels.on_gpu import bridge

    bridge()


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="looks into the interpreter or replaces what a launch allocates")
    for item in items:
        if os.environ.get("TRITON_INTERPRET") != "1" and item.get_closest_marker("interpreter"):
            item.add_marker(skip)
