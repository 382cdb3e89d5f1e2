"""Learned masks on layers, and their permanent form."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.pruning import top_k_mask, top_k_masks
from lightning_weights.modules import HardConcreteGate, ScoreMask, make_pruning_permanent, refresh_masks


def masked(layer, keep=0.25, **options):
    mask = ScoreMask(layer.weight, keep, **options)
    parametrize.register_parametrization(layer, "weight", mask)
    return mask


def small_network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def test_begins_as_magnitude_pruning():
    layer = nn.Linear(8, 4)
    weight = layer.weight.detach().clone()
    mask = masked(layer)
    assert torch.equal(layer.weight, weight * top_k_mask(weight, 0.25))
    assert int(mask.kept) == 8


def test_keeping_everything_changes_no_bit():
    layer = nn.Linear(8, 4)
    x = torch.randn(3, 8)
    before = layer(x)
    masked(layer, keep=1.0)
    assert torch.equal(layer(x), before)


def test_scores_learn_and_weights_stay():
    layer = nn.Linear(8, 4)
    layer.requires_grad_(False)
    mask = masked(layer)
    original = layer.parametrizations.weight.original
    before, first = original.clone(), mask.mask.clone()
    optimizer = torch.optim.SGD(mask.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        mask.refresh()
    assert torch.equal(original, before)
    assert not torch.equal(mask.mask, first)
    assert torch.equal(mask.mask, top_k_mask(mask.scores, 0.25))


def test_masked_weights_stay_zero_while_survivors_train():
    layer = nn.Linear(8, 4)
    mask = masked(layer)
    mask.scores.requires_grad_(False)
    optimizer = torch.optim.SGD(layer.parametrizations.weight.parameters(), lr=0.1, momentum=0.9)
    before = layer.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
    after = layer.weight.detach()
    assert mask.scores.grad is None
    assert (after[~mask.mask] == 0).all()
    assert (after[mask.mask] != before[mask.mask]).all()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masks_come_back_from_a_state_in_every_bit(scope):
    networks = [small_network(), small_network()]
    masks = [[masked(network[0]), masked(network[3])] for network in networks]
    with torch.no_grad():
        for mask in masks[0]:
            mask.scores.copy_(torch.randint(-4, 5, mask.scores.shape))  # ties everywhere
    refresh_masks(masks[0], scope)
    state = networks[0].state_dict()
    assert not any("mask" in name for name in state)
    networks[1].load_state_dict(state)
    for mine, theirs in zip(*masks, strict=True):
        assert torch.equal(mine.mask, theirs.mask)
    joint = top_k_masks([mask.scores for mask in masks[0]], 0.25)
    assert (scope == "global") == all(torch.equal(m.mask, j) for m, j in zip(masks[0], joint, strict=True))


def test_global_scope_warns_of_an_empty_layer():
    masks = [ScoreMask(scale * torch.ones(2, 2), 0.5) for scale in (1.0, 1.0)]
    masks[1].scores.data *= 2
    with pytest.warns(LightningWeightsWarning, match=r"no weight in layer 0 of 2"):
        refresh_masks(masks, "global")
    assert [int(mask.kept) for mask in masks] == [0, 4]


@pytest.mark.parametrize("order", ["gate first", "mask first", "gate alone"])
@pytest.mark.parametrize("training", [True, False])
def test_permanent_form_is_the_evaluated_network(order, training):
    network = small_network()
    network[3].weight.requires_grad_(False)
    plain = copy.deepcopy(network)
    gate = HardConcreteGate(4, droprate_init=0.6)
    if order != "mask first":
        parametrize.register_parametrization(network[0], "weight", gate)
    if order != "gate alone":
        masked(network[3])
        parametrize.register_parametrization(
            network[0], "weight", ScoreMask(plain[0].weight, 0.5), unsafe=order == "gate first"
        )
    if order == "mask first":
        parametrize.register_parametrization(network[0], "weight", gate)
    x = torch.randn(6, 2, 4, 4)
    want = network.eval()(x)
    network.train(training)
    parameter = network[0].parametrizations.weight.original
    assert make_pruning_permanent(network) is network
    assert torch.equal(network(x), want)
    assert [type(part) for part in network.modules()] == [type(part) for part in plain.modules()]
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert network[0].weight is parameter
    assert not network[3].weight.requires_grad
    assert network.training == training
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(plain.eval()(x), want)


def test_other_parametrizations_stay():
    network = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    masked(network[1])
    make_pruning_permanent(network)
    assert parametrize.is_parametrized(network[0], "weight")
    assert not parametrize.is_parametrized(network[1])


def test_compiles_whole():
    layer = nn.Linear(8, 4)
    mask = masked(layer)
    x = torch.randn(3, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.no_grad():
        mask.scores.normal_()
    mask.refresh()
    torch.testing.assert_close(compiled(x), layer(x))


def test_random_start_takes_any_weight():
    mask = ScoreMask(torch.zeros(4, 6), 0.5, init="random")
    assert mask.mask.sum() == 12
    assert mask.scores.abs().max() <= (1 / 6) ** 0.5


def test_bad_input():
    weight = torch.ones(2, 2)
    with pytest.raises(ValueError, match="keep is 0"):
        ScoreMask(weight, 0)
    with pytest.raises(ValueError, match="init is 'ones'"):
        ScoreMask(weight, 0.5, init="ones")
    with pytest.raises(ValueError, match="all zero"):
        ScoreMask(torch.zeros(2, 2), 0.5)
    with pytest.raises(ValueError, match="scope is 'all'"):
        refresh_masks([], "all")
    with pytest.raises(ValueError, match=r"keep is one of \[0.5, 1.0\]"):
        refresh_masks([ScoreMask(weight, 0.5), ScoreMask(weight, 1.0)], "global")
