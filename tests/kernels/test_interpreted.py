"""Runs the tests of Triton kernels in a process of their own: in the interpreter, and on a GPU if there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get("KERNEL_TESTS_ON_GPU") == "1",
    reason="this is that process",
)


def run_with(**changes):
    folder = Path(__file__).parent / "interpreted"
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider", "--no-header"]
    environment = {**os.environ, "LIGHTNING_WEIGHTS_KERNELS": "auto", **changes}
    run = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_kernels_in_the_interpreter():
    run_with(TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_kernels_on_a_gpu():
    run_with(KERNEL_TESTS_ON_GPU="1")
