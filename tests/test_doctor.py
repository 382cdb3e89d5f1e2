"""The doctor: what it reports about machines of every kind, and that it never fails itself."""

import importlib.metadata
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_weights import doctor
from lightning_weights.errors import KernelUnavailableError, MissingDependencyError
from lightning_weights.kernels._aot import TARGETS
from lightning_weights.kernels._op import ENVIRONMENT_VARIABLE
from lightning_weights.methods import METHODS

OPS = list(dict.fromkeys(op for card in METHODS for op in card.ops))
REPORTS = [
    {
        "kernel": "_classp_step_kernel",
        "variant": "bf16 p=any no decay",
        "even": even,
        "target": target,
        "registers": 40,
        "wide_loads": 4,
        "wide_stores": 4,
        "failures": ["1 spills"] if target == "gfx942" else [],
    }
    for even in (True, False)
    for target in TARGETS
]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    monkeypatch.setattr(doctor, "tabulate", lambda: REPORTS)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def accelerator(monkeypatch, kind, count, module):
    """Let torch report an accelerator that this machine may not have."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)


def examined():
    """Return the parts of a report, whose lines all fit a terminal."""
    parts = list(doctor.examine())
    assert max(len(line) for part in parts for line in part.splitlines()) <= 80
    return parts


def flowing(part):
    """Return a part with its line breaks and indents undone."""
    return " ".join(part.split())


def test_versions_and_packages_are_those_of_the_metadata(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    versions, packages, _, _ = examined()
    rows = dict(line.split(maxsplit=1) for line in versions.splitlines())
    for name in ("torch", "lightning", "torchmetrics", "jsonargparse"):
        assert rows[name] == importlib.metadata.version(name)
    assert rows["GPU"] == "none"
    assert f"scikit-learn       {importlib.metadata.version('scikit-learn')}" in packages.splitlines()


def test_a_missing_package_comes_with_the_line_that_installs_it(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions, packages, *_ = examined()
    assert "torch              not installed" in versions.splitlines()
    for name in doctor.OPTIONAL_PACKAGES:
        assert f"{name:<18} missing: pip install {name}" in packages.splitlines()


@pytest.mark.parametrize("name", doctor.OPTIONAL_PACKAGES)
def test_the_optional_packages_are_those_of_the_extras(name):
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert re.search(rf'["\[,]{name}[>\]]', project.partition("[project.optional-dependencies]")[2])


@pytest.mark.parametrize("count", [1, 8])
def test_gpus_are_named(monkeypatch, count):
    names = [f"NVIDIA H100 80GB HBM3 number {index}" for index in range(count)]
    accelerator(monkeypatch, "cuda", count, SimpleNamespace(get_device_name=names.__getitem__))
    monkeypatch.setattr(doctor, "takes_triton", lambda device, covered: device == "cuda")
    versions, _, operators, _ = examined()
    assert f"GPU {', '.join(names)}" in flowing(versions)
    for op in OPS:
        assert f"{op:<18} cpu: eager" in operators.splitlines()
        assert f"{op:<18} cuda: triton" in operators.splitlines()


def test_an_accelerator_without_names_is_called_by_its_type(monkeypatch):
    accelerator(monkeypatch, "mps", 1, SimpleNamespace())
    versions, _, operators, _ = examined()
    assert "GPU                mps" in versions.splitlines()
    assert f"{OPS[0]:<18} mps: eager" in operators.splitlines()


@pytest.mark.parametrize("mode", [None, "auto", "eager"])
def test_operators_are_eager_on_the_cpu(monkeypatch, mode):
    if mode:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, mode)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    lines = examined()[2].splitlines()
    assert lines[0] == f"Operators ({ENVIRONMENT_VARIABLE}={mode or 'auto'})"
    assert lines[1:] == [f"{op:<18} cpu: eager" for op in OPS]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("triton", "the tensors are on cpu"),
        ("fast", "is 'fast'; allowed are auto, eager, triton"),
        ("", "is ''; allowed"),
    ],
)
def test_a_mode_that_cannot_be_met_is_explained(monkeypatch, mode, reason):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, mode)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr("lightning_weights.kernels._op.triton_installed", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    operators = flowing(examined()[2])
    assert f"({ENVIRONMENT_VARIABLE}={mode})" in operators
    for op in OPS:
        assert f"{op} cpu: not available: " in operators
    assert reason in operators


def test_the_table_of_compiled_kernels_is_the_last_part():
    table = examined()[-1]
    assert table.startswith("Kernels compiled ahead of time\n\n`_classp_step_kernel`")
    assert table.count("40 / 4 / 4") == 2 * (len(TARGETS) - 1)
    assert table.count("**fails**") == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MissingDependencyError("triton", "triton", "The table"), "pip install triton"),
        (KernelUnavailableError("unset TRITON_INTERPRET"), "unset TRITON_INTERPRET"),
        (ImportError("cannot import name 'GPUTarget' from\n'triton.backends.compiler'"), "'GPUTarget'"),
        (FileNotFoundError(2, "No such file or directory", "/long" * 40 + "/cuobjdump"), "No such file"),
        (subprocess.CalledProcessError(255, ["cuobjdump", "-sass"]), "exit status 255"),
    ],
)
def test_a_table_that_cannot_be_made_is_explained(monkeypatch, error, reason):
    def tabulate():
        raise error

    monkeypatch.setattr(doctor, "tabulate", tabulate)
    last = examined()[-1]
    assert last.startswith("Kernels compiled ahead of time\n\nnot available here: ")
    assert reason in flowing(last)


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(doctor, "tabulate", lambda: {}["kernel"])
    with pytest.raises(KeyError):
        list(doctor.examine())
