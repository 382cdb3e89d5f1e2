"""Choice of the implementation, sharding rule and registration: what all operators share."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Partial

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels import _op, kernel_mode, local_shards, use_kernels
from lightning_weights.kernels.classp_step import classp_step, classp_step_reference
from tests.kernels.classp_cases import RULE, lists, take

FP32 = (torch.float32,)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    monkeypatch.delenv("LIGHTNING_WEIGHTS_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture(scope="module")
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_the_innermost_choice_wins(monkeypatch):
    assert kernel_mode() == "auto"
    monkeypatch.setenv("LIGHTNING_WEIGHTS_KERNELS", "triton")
    assert kernel_mode() == "triton"
    with use_kernels("auto"), use_kernels("eager"):
        assert kernel_mode() == "eager"
    assert kernel_mode() == "triton"


def test_a_choice_ends_with_an_error_inside():
    with pytest.raises(RuntimeError, match="inside"), use_kernels("eager"):
        raise RuntimeError("inside")
    assert kernel_mode() == "auto"


def test_unknown_modes_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"mode is 'cuda'; allowed are auto, eager, triton"), use_kernels("cuda"):
        pass
    monkeypatch.setenv("LIGHTNING_WEIGHTS_KERNELS", "fast")
    with pytest.raises(ValueError, match=r"LIGHTNING_WEIGHTS_KERNELS is 'fast'"):
        classp_step(*lists([(2,)]), torch.zeros(2, dtype=torch.int64), **RULE)


def test_triton_on_the_cpu_needs_the_interpreter():
    data = lists([(2,)])
    before = data[0][0].clone()
    with (
        use_kernels("triton"),
        pytest.raises(KernelUnavailableError, match=r"the tensors are on cpu.*TRITON_INTERPRET"),
    ):
        classp_step(*data, torch.zeros(2, dtype=torch.int64), **RULE)
    assert torch.equal(data[0][0], before)


def test_automatic_choice(monkeypatch):
    narrow, wide = [torch.ones(1)], [torch.ones(1, dtype=torch.float64)]
    monkeypatch.setattr(_op, "triton_installed", lambda: True)
    assert _op.takes_triton("cuda", [(narrow, FP32)])
    assert not _op.takes_triton("cuda", [(narrow, FP32), (wide, FP32)])
    assert not _op.takes_triton("cpu", [(narrow, FP32)])
    assert not _op.takes_triton("mps", [(narrow, FP32)])
    assert not _op.takes_triton("cuda", [(narrow, FP32)], exact_products=True)
    with use_kernels("eager"):
        assert not _op.takes_triton("cuda", [(narrow, FP32)])
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"not written for torch.float64"):
        _op.takes_triton("cuda", [(wide, FP32)])
    with use_kernels("triton"):
        assert _op.takes_triton("cuda", [(narrow, FP32)], exact_products=True)
    monkeypatch.setattr(_op, "triton_installed", lambda: False)
    assert not _op.takes_triton("cuda", [(narrow, FP32)])
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match=r"triton is not installed.*pip install"):
        _op.takes_triton("cuda", [(narrow, FP32)])


def test_everything_works_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from lightning_weights.kernels.classp_step import classp_step
weight, counts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
rule = dict(lr=0.5, threshold=0.0, power=1.0, eps=1e-9)
classp_step([weight], [torch.tensor([1.0, 0.0])], [torch.zeros(2)], counts, **rule)
print(weight.tolist(), counts.tolist())
from lightning_weights.kernels._aot import tabulate
try:
    tabulate()
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert lines[0] == "[-0.5, 0.0] [1, 0]", run.stderr
    assert "pip install triton (extra 'triton' of lightning-weights)" in lines[1]


def test_fusing_of_products_and_sums_is_pinned():
    assert os.environ["TRITON_DEFAULT_FP_FUSION"] in ("0", "1")


def test_threads_do_not_share_buffers():
    data = [lists([(20_000,)]) for _ in range(2)]
    wanted = [classp_step_reference(*(tensors[0] for tensors in each), **RULE)[0] for each in data]
    results = {}

    def work(index):
        for _ in range(20):
            results.setdefault(index, []).append(take(classp_step, data[index], RULE)[0][0])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, want in enumerate(wanted):
        assert len(results[index]) == 20
        for got in results[index]:
            torch.testing.assert_close(got, want)


def test_plain_tensors_pass_through():
    tensors = [torch.ones(2)]
    assert local_shards(tensors)[0][0] is tensors[0]


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
def test_shards_are_updated_in_place(mesh, placement):
    data = lists([(4, 6)])
    want, want_sum, mask = classp_step_reference(*(tensors[0] for tensors in data), **RULE)
    sharded = [[distribute_tensor(tensors[0], mesh, [placement])] for tensors in data]
    counts = torch.zeros(2, dtype=torch.int64)
    classp_step(*sharded, counts, **RULE)
    torch.testing.assert_close(sharded[0][0].full_tensor(), want)
    torch.testing.assert_close(sharded[2][0].full_tensor(), want_sum)
    assert counts[0] == mask.sum()


def test_sharded_and_whole_tensors_may_be_mixed(mesh):
    data = lists([(4, 6), (5,)])
    mixed = [[tensors[0], distribute_tensor(tensors[1], mesh, [Shard(0)])] for tensors in data]
    local = local_shards(*mixed)
    assert local[0][0] is data[0][0]
    assert not hasattr(local[0][1], "placements")


def test_operands_laid_out_differently_are_refused(mesh):
    data = [tensors[0] for tensors in lists([(4, 6)])]
    param, grad_sum = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (data[0], data[2]))
    partial = torch.distributed.tensor.DTensor.from_local(data[1], mesh, [Partial()])
    before = param.full_tensor().clone()
    for grad in (data[1], distribute_tensor(data[1], mesh, [Shard(1)]), partial):
        with pytest.raises(ShardedParameterError, match=r"sharded alike.*Redistribute the gradient"):
            classp_step([param], [grad], [grad_sum], torch.zeros(2, dtype=torch.int64), **RULE)
    with pytest.raises(ShardedParameterError, match="partial"):
        local_shards([partial], [partial])
    assert torch.equal(param.full_tensor(), before)
