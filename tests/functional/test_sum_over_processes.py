"""A sum over one process; several of them run in the behaviour tests."""

import pytest
import torch
import torch.distributed as dist

from lightning_weights.functional.sum_over_processes import sum_over_processes


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_sums_itself(one_process):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    total = sum_over_processes(x.t())
    torch.testing.assert_close(total, x.t())
    assert total.data_ptr() != x.data_ptr()
    assert torch.autograd.gradcheck(sum_over_processes, x)
    assert torch.autograd.gradgradcheck(lambda z: sum_over_processes(z).square(), x)
