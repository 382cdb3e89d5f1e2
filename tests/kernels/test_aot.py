"""Compiles all kernels for all GPU targets in one process without Triton's interpreter, and reads the machine code."""

import json
import os
import subprocess
import sys

import pytest

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import _aot

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "table.json"
    command = [sys.executable, "-m", "lightning_weights.kernels", "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    return json.loads(path.read_text())


def test_every_gate_holds(reports):
    failures = {(report["variant"], report["target"]): report["failures"] for report in reports if report["failures"]}
    assert not failures


def test_every_kernel_is_compiled_for_every_target(reports):
    kernels = {report["kernel"] for report in reports}
    assert {(r["kernel"], r["target"]) for r in reports} == {(k, target) for k in kernels for target in _aot.TARGETS}
    assert "classp_step_fwd_kernel" in kernels


def test_full_blocks_move_128_bits_at_a_time(reports):
    full = [report for report in reports if report["even"]]
    assert full
    assert all(report["wide_loads"] >= 3 and report["wide_stores"] >= 2 for report in full)


def test_the_table_names_every_failure(reports):
    broken = [{**reports[0], "failures": ["1 spills"]}, *reports[1:]]
    assert "**fails**" not in _aot.as_markdown(reports)
    assert _aot.as_markdown(broken).count("**fails**") == 1


def test_gates_can_fail():
    """A reader that saw neither spills nor narrow accesses would accept everything."""
    amd = ".vgpr_count: 40\n.vgpr_spill_count: 3\n.sgpr_spill_count: 0\nScratchSize: 16\nglobal_load_dwordx4 v[0:3]"
    assert _aot._read_amd(amd) == {"registers": 40, "spills": 19, "wide_loads": 1, "wide_stores": 0}


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(KernelUnavailableError, match="unset TRITON_INTERPRET"):
        _aot.tabulate()
