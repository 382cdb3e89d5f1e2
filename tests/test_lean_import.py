"""Importing the package is quick and needs none of the optional packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONAL = (
    *("triton", "peft", "e3nn", "bitsandbytes", "transformers", "sklearn", "matplotlib", "rich", "mnist1d", "PIL"),
    "rdkit",
)
HEAVY = ("scipy", "pandas", "torchvision", "omegaconf", "torch._inductor")

PROGRAM = f"""
import importlib, json, pkgutil, sys, time
import torch, lightning.pytorch

found = {{"looked for": []}}
OPTIONAL = {OPTIONAL!r}


class Without:
    '''A finder for which the optional packages are not installed.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *args):
        if name.split(".")[0] in OPTIONAL:
            found["looked for"].append(name)
            return None
        return self.finder.find_spec(name, *args)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in [name for name in sys.modules if name.split(".")[0] in OPTIONAL]:
    del sys.modules[name]

before, start = set(sys.modules), time.perf_counter()
import lightning_weights
found["seconds"] = time.perf_counter() - start
found["loaded"] = sorted(set(sys.modules) - before)

names = []
for room in lightning_weights._SUBPACKAGES:
    if room == "adapters":  # classes of peft's classes
        continue
    module = getattr(lightning_weights, room)
    names += [f"{{room}}.{{name}}" for name in getattr(module, "__all__", []) if getattr(module, name) is not None]
found.update(names=names, everything=sorted(set(sys.modules) - before), early=list(found["looked for"]))

import lightning_weights.cli

for module in pkgutil.walk_packages(lightning_weights.__path__, "lightning_weights."):
    if "adapters" in module.name:
        continue
    if not module.name.endswith(("__main__", ".kernel", "_kernels", ".launch")):  # those import triton
        importlib.import_module(module.name)
try:
    lightning_weights.adapters.BoneConfig
except ImportError as error:
    found["no peft"] = str(error)
try:
    lightning_weights.data.PermutedDigits().setup()
except ImportError as error:
    found["missing"] = str(error)
try:
    with lightning_weights.kernels.use_kernels("triton"):
        weight = torch.zeros(1, requires_grad=True)
        weight.sum().backward()
        lightning_weights.optimizers.CLASSP([weight]).step()
except lightning_weights.errors.KernelUnavailableError as error:
    found["no triton"] = str(error)
weight = torch.zeros(1, requires_grad=True)
weight.sum().backward()
lightning_weights.optimizers.CLASSP([weight]).step()
found["moved"] = weight.item()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """Return what a process without the optional packages reports."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_import_is_quick_and_loads_nothing_else(found):
    assert found["seconds"] < 0.3
    assert [name for name in found["loaded"] if not name.startswith("lightning_weights")] == []


@pytest.mark.slow
def test_no_public_name_brings_a_heavy_package_along(found):
    assert found["early"] == []
    assert [name for name in found["everything"] if name.startswith(HEAVY)] == []


@pytest.mark.slow
def test_all_public_names_import_without_the_optional_packages(found):
    assert {"optimizers.CLASSP", "callbacks.CLASSPPhases", "metrics.TaskAccuracyMatrix"} <= set(found["names"])


@pytest.mark.slow
def test_missing_packages_are_named_with_the_line_that_installs_them(found):
    assert "PermutedDigits needs the package 'scikit-learn'" in found["missing"]
    assert "pip install scikit-learn (extra 'stacking' of lightning-weights)" in found["missing"]
    assert "pip install triton" in found["no triton"]
    assert "lightning_weights.adapters needs the package 'peft'" in found["no peft"]


@pytest.mark.slow
def test_training_needs_none_of_them(found):
    assert found["moved"] == pytest.approx(-0.1, rel=1e-4)
