"""Modes, growth and parameter groups of whole networks."""

import pytest
import torch
from torch import nn

from lightning_weights.functional.mixture_growth import new_coefficients
from lightning_weights.modules import (
    copy_templates,
    grow,
    idle_parameters,
    mixture_param_groups,
    mixture_parts,
    mixturize,
    set_mode,
)


def network(**options):
    hidden = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)
    return mixturize(nn.Sequential(*hidden, nn.Linear(8, 2)), keep_bias=True, **options)


def test_modes_of_all_parts():
    net = network()
    assert list(mixture_parts(net)) == ["0", "1", "3", "4"]
    set_mode(net, "member1")
    assert {part.mode for part in mixture_parts(net).values()} == {"member1"}
    for bad in (lambda: set_mode(net, "both"), lambda: grow(net, "svd"), lambda: grow(net, coefficient_scale=-1.0)):
        with pytest.raises(ValueError, match="allowed"):
            bad()
    assert {part.mode for part in mixture_parts(net).values()} == {"member1"}
    with pytest.raises(ValueError, match="no mixture layers"):
        set_mode(nn.Linear(2, 2), "grown")


def test_growth_needs_values():
    with torch.device("meta"):
        net = network()
    with pytest.raises(ValueError, match="on the meta device and have no values"):
        grow(net, "zero")
    assert {part.mode for part in mixture_parts(net).values()} == {"member0"}
    whole = network()
    grow(whole, "zero")
    net.to_empty(device="cpu").load_state_dict(whole.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(net.eval()(x), whole.eval()(x))


def test_growth_uses_a_generator_of_its_own_and_what_is_agreed_upon():
    net = network(num_templates=3)
    alphas = [alpha.detach().clone() for alpha in net[3].coefficients]
    state = torch.get_rng_state()
    grow(net, "copy", 0.5, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    wanted = new_coefficients(alphas, "copy", 0.5, generator=torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(list(net[3].coefficients)[2:], wanted, strict=True))
    grow(net, "copy", agree=lambda blocks: {name: [torch.full((3,), 7.0)] * 2 for name in blocks})
    assert all(torch.equal(alpha, torch.full((3,), 7.0)) for alpha in list(net[3].coefficients)[2:])


def test_templates_are_copied_with_noise_of_a_generator_of_its_own():
    net = network(num_templates=3, banks="shape")
    state, before = torch.get_rng_state(), [alpha.clone() for alpha in net[3].coefficients]
    copy_templates(net, 0.5, seed=3)
    first, second = net[3].bank.sets
    noise = second - first
    assert float((noise.std() / first.std()).detach()) == pytest.approx(0.5, rel=0.4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(net[3].coefficients, before, strict=True))
    copy_templates(net)
    assert torch.equal(*net[3].bank.sets)
    with pytest.raises(ValueError, match="noise is -1"):
        copy_templates(net, -1.0)


def test_idle_parameters_are_those_without_gradients():
    net = network()
    for mode in ("member0", "member1", "grown"):
        set_mode(net, mode)
        net.zero_grad()
        net(torch.randn(5, 4)).sum().backward()
        without = {id(param) for param in net.parameters() if param.grad is None}
        assert {id(param) for param in idle_parameters(net)} == without
        assert bool(without) is (mode != "grown")
    set_mode(net, "member1")
    assert [id(p) for p in idle_parameters(net, (0, 1))] == [id(p) for p in list(net[3].coefficients)[2:]]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_steps_leave_an_idle_member_alone(optimizer):
    net = network()
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    steps = optimizer(mixture_param_groups(net, weight_decay=0.1), lr=0.1, **options)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    idle = {id(param) for param in idle_parameters(net)}
    for _ in range(3):
        steps.zero_grad()
        net(torch.randn(5, 4)).square().mean().backward()
        steps.step()
    for name, param in net.named_parameters():
        assert torch.equal(param, before[name]) is (id(param) in idle), name
    assert torch.equal(net[1].running_mean[4:], before["1.running_mean"][4:])
    assert not torch.equal(net[1].running_mean[:4], before["1.running_mean"][:4])


def test_groups_without_decay_hold_coefficients_only():
    net = network(banks="shape")
    groups = mixture_param_groups(net, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    # those of first and last layers are frozen
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in net[3].coefficients}
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len([param for param in net.parameters() if param.requires_grad])
    assert mixture_param_groups(nn.Linear(2, 2), 0.1)[0]["weight_decay"] == 0.1
    with pytest.raises(ValueError, match="weight_decay is -1"):
        mixture_param_groups(net, -1)
