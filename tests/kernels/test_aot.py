"""Compiles every kernel for all GPU targets in one process without Triton's interpreter, and reads the machine code."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import _aot, _machine_code

pytest.importorskip("triton")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "table.json"
    command = [sys.executable, "-m", "lightning_weights.kernels", "--quick", "--json", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_DISABLE_LINE_INFO"] = "1"  # the instructions are the same, and there sooner
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr
    return json.loads(path.read_text())


def test_every_gate_holds(reports):
    failures = {
        (report["kernel"], report["variant"], report["target"]): report["failures"]
        for report in reports
        if report["failures"]
    }
    assert not failures


def test_every_kernel_is_compiled_for_every_target(reports):
    kernels = {report["kernel"] for report in reports}
    assert {(r["kernel"], r["target"]) for r in reports} == {(k, target) for k in kernels for target in _aot.TARGETS}
    assert "classp_step_fwd_kernel" in kernels


def test_full_blocks_move_128_bits_at_a_time(reports):
    """Every kernel reads at least one large tensor; the streaming ones read and write several."""
    full = [report for report in reports if report["even"]]
    assert {report["kernel"] for report in full} == {report["kernel"] for report in reports}
    # 64 coordinates are fewer bytes than 128 bits for each thread of a warp
    long = [report for report in full if report["kernel"] != "coordinate_descent_fwd_kernel"]
    assert all(report["wide_loads"] >= 1 for report in long)
    steps = [report for report in full if report["kernel"] == "classp_step_fwd_kernel"]
    assert steps
    assert all(report["wide_loads"] >= 3 and report["wide_stores"] >= 2 for report in steps)


def test_the_table_names_every_failure(reports):
    broken = [{**reports[0], "failures": ["1 spills"]}, *reports[1:]]
    assert "**fails**" not in _aot.as_markdown(reports)
    assert _aot.as_markdown(broken).count("**fails**") == 1


AMD = """
.vgpr_count: 40
.vgpr_spill_count: 3
.sgpr_spill_count: 0
ScratchSize: 16
    global_load_dwordx4 v[0:3]
    global_load_dword v4
    v_mfma_f32_32x32x2_f32 v[0:3]
"""
TTIR = "%1 = tt.load %0 : tensor<512x!tt.ptr<f32>>"


def test_machine_code_is_read():
    """A reader that saw neither spills nor narrow accesses would accept everything."""
    code = _machine_code.read_amd(AMD)
    assert code.facts() == {"registers": 40, "spills": 19, "wide_loads": 1, "wide_stores": 0}
    assert code.opcodes == ["global_load_dwordx4", "global_load_dword", "v_mfma_f32_32x32x2_f32"]


def judged(**changes):
    """Judge code without spills, of one 128-bit load per thread, against a row that differs from it in something."""
    assembly = AMD.replace("count: 3", "count: 0").replace("16", "0")
    binary = SimpleNamespace(asm={"ttir": TTIR}, metadata=SimpleNamespace(shared=1024))
    kernel = SimpleNamespace(fn=SimpleNamespace(__name__="kernel"))
    expected = {"registers": 40, "even": True, "loads": (2048,), "stores": (), **changes}
    row = _aot.Row(name="", kernel=kernel, signature={}, constexprs={}, num_warps=2, **expected)
    return _aot._judge(row, "gfx942", binary, _machine_code.read_amd(assembly)).failures


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({}, None),
        ({"even": False, "loads": (4096,)}, None),
        ({"wide_loads": {"gfx942": 1, "sm_90": 7}}, None),
        ({"opcodes": {"gfx942": "v_mfma", "sm_90": "HGMMA"}}, None),
        ({"registers": 39}, "40 registers, budget 39"),
        ({"loads": (4096,)}, "1 loads of 128 bits instead of 2"),
        ({"wide_loads": {"gfx942": 3}}, "1 loads of 128 bits instead of 3"),
        ({"wide_stores": {"gfx942": 3}}, "0 stores of 128 bits instead of 3"),
        ({"loads": (1024, 1024)}, "1 vector loads, cost model 2"),
        ({"opcodes": {"gfx942": "v_mfma_f32_16x16"}}, "no instruction v_mfma_f32_16x16"),
    ],
    ids=str,
)
def test_gates_can_fail(changes, failure):
    assert judged(**changes) == ([] if failure is None else [failure])


def test_missing_stores_and_too_much_shared_memory_fail(monkeypatch):
    monkeypatch.setitem(_aot.SHARED_LIMITS, "gfx942", 1000)
    assert judged(stores=(2048,)) == [
        "1024 bytes of shared memory",
        "0 vector stores, cost model 1",
        "0 stores of 128 bits instead of 1",
    ]


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(KernelUnavailableError, match="unset TRITON_INTERPRET"):
        _aot.tabulate()
