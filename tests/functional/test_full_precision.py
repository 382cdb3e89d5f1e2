"""Settings of precision: full inside, and afterwards what they were."""

import subprocess
import sys

import pytest

# in a process of its own: PyTorch refuses to read some settings once others were changed
PROGRAM = """
import torch
from torch import backends
from lightning_weights.functional.full_precision import full_precision

def settings():
    intel = backends.mkldnn
    parts = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, intel.matmul, intel.conv)
    found = [part.fp32_precision for part in parts]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:
        return [*found, "mixed"]

{change}
before = settings()
try:
    with full_precision():
        inside = settings()
        raise KeyError
except KeyError:
    pass
assert inside == ["ieee"] * 5 + ["highest"], inside
assert settings() == before, (settings(), before)
assert "{first}" in before, before
"""


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("", "tf32"),  # convolutions, by default
        ("torch.set_float32_matmul_precision('medium')", "bf16"),
        ("backends.cuda.matmul.fp32_precision = 'tf32'", "mixed"),
    ],
)
def test_full_inside_and_restored_afterwards(change, first):
    pytest.importorskip("torch", minversion="2.9")
    program = PROGRAM.format(change=change, first=first)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
