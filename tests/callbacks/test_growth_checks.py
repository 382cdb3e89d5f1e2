"""Strategies that growing networks do not go with."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lightning_weights.callbacks._growth_checks import check_strategy
from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules import MixtureLinear, grow


@pytest.fixture
def group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def trainer(model):
    return SimpleNamespace(strategy=SimpleNamespace(model=model))


def test_ddp_has_to_look_for_unused_parameters(group):
    for options in ({}, {"find_unused_parameters": True, "static_graph": True}):
        with pytest.raises(ValueError, match="use strategy='ddp_find_unused_parameters_true'"):
            check_strategy(trainer(DistributedDataParallel(nn.Linear(2, 2), **options)))
    check_strategy(trainer(DistributedDataParallel(nn.Linear(2, 2), find_unused_parameters=True)))
    check_strategy(trainer(nn.Linear(2, 2)))


def test_sharded_parameters_are_refused(group):
    flat = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(flat)
    sharded = nn.Linear(2, 2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    sharded.weight = nn.Parameter(torch.distributed.tensor.distribute_tensor(sharded.weight.detach(), mesh))
    for part in (flat, sharded):
        with pytest.raises(ShardedParameterError, match="use strategy='ddp_find_unused_parameters_true'"):
            check_strategy(trainer(nn.ModuleList([nn.Linear(2, 2), part])))
    layer = MixtureLinear(4, 4)
    alpha = torch.distributed.tensor.distribute_tensor(torch.ones(2), mesh)
    layer.coefficients[3] = nn.Parameter(alpha)
    with pytest.raises(ShardedParameterError, match="whole ones are needed; use DDP"):
        grow(layer)
    assert layer.mode == "member0"
