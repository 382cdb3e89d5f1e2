"""What tasks share: groups of parameters, schedulers, foreign networks, copies."""

import copy
from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.modules import (
    PonitaDiffusion,
    PonitaDynamics,
    PonitaPotential,
    PonitaRegressor,
    WarmupCosine,
    linear_decay_groups,
)
from tests.helpers.battery import NOISE
from tests.modules.ponita_tasks.cases import collate, fit, molecules, net

pytestmark = pytest.mark.filterwarnings(NOISE)


def potential(**options):
    return PonitaPotential(net(pooling="sum", layer_scale=0.1), **options)


def test_only_weights_of_linear_layers_decay():
    module = potential()
    decayed, rest = module.configure_optimizers().param_groups
    assert (decayed["weight_decay"], rest["weight_decay"], decayed["lr"]) == (1e-16, 0.0, 5e-4)
    names = {id(param): name for name, param in module.named_parameters()}
    kinds = {names[id(param)].rsplit(".")[-1] for param in decayed["params"]}
    assert kinds == {"weight"}
    assert not any("norm" in names[id(param)] for param in decayed["params"])
    left = {names[id(param)].rsplit(".")[-1] for param in rest["params"]}
    assert left == {"bias", "weight", "layer_scale"}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    own = potential(optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.5)).configure_optimizers()
    assert [group["weight_decay"] for group in own.param_groups] == [0.5, 0.0]


def test_frozen_and_missing_parameters_have_no_group():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))
    module[1].requires_grad_(False)
    assert [len(group["params"]) for group in linear_decay_groups(module)] == [1]


def test_the_scheduler_steps_by_epochs():
    trainer = fit(potential(lr_scheduler=partial(WarmupCosine, max_epochs=4, warmup_epochs=1)))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-4 / 2)


class Drift(nn.Module):
    """A rival that knows nothing of the package."""

    def __init__(self):
        super().__init__()
        self.time = nn.Parameter(torch.tensor(0.5))

    def forward(self, scalars, pos, edge_index, batch, vectors, condition):
        return namedtuple("Answer", "scalars vectors")(scalars[:, :0], self.time * vectors)


def test_any_network_can_be_trained():
    batch = collate(molecules()[:2])
    batch = {**batch, "vec": batch["forces"], "y": batch["pos"] + batch["forces"]}
    module = PonitaDynamics(Drift())
    torch.testing.assert_close(module.training_step(batch, 0), batch["forces"].square().mean() / 4)


class Sizes(nn.Module):
    """Says how many points there are, in an object that is no tuple."""

    def forward(self, scalars, pos, edge_index, batch, vectors, condition):
        return SimpleNamespace(scalars=torch.bincount(batch).float()[:, None], vectors=None)


def test_answers_without_vectors_are_averaged_too():
    batch = collate(molecules()[:2])
    assert PonitaRegressor(Sizes(), test_time_rotations=2).predict_step(batch, 0).tolist() == [[3.0], [4.0]]


def test_tensors_are_made_where_the_batch_is():
    """A default device, as Trainer.init_module sets one, changes nothing."""
    batch, generator = collate(molecules()[:2]), torch.Generator().manual_seed(0)
    diffusion = PonitaDiffusion(net(out_scalars=2, out_vectors=1, conditioning_dim=1))
    module = potential()
    with torch.device("meta"):
        module.standardize([batch])
        assert module.predict(batch).forces.device.type == "cpu"
        assert diffusion.validation_step(batch, 0)["loss"].device.type == "cpu"
        assert all(part.device.type == "cpu" for part in diffusion.sample([2, 3], generator, steps=1))


def test_copies_and_checkpoints_leave_objects_out():
    module = potential(lambda_force=3.0)
    assert dict(module.hparams) == {"lambda_force": 3.0, "test_time_rotations": 5}
    again = copy.deepcopy(module)
    batch = collate(molecules()[:1])
    assert torch.equal(again(batch).forces, module(batch).forces)
