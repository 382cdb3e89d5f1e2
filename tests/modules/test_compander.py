"""The parametrization by itself: numbers, bounds, keeping of weights, copies."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.kernels.compand import FUNCTIONS, compand
from lightning_weights.modules import Compander

EACH = pytest.mark.parametrize("function", FUNCTIONS)


def companded(layer=None, **options):
    layer = nn.Linear(6, 4) if layer is None else layer
    arguments = {"a": 1.5, "b": 1.0, **options}
    return parametrize.register_parametrization(layer, "weight", Compander(**arguments))


@EACH
@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3), nn.Conv1d(2, 4, 5)], ids=["linear", "conv2d", "conv1d"]
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_registering_changes_no_output(function, layer, per_channel):
    layer = copy.deepcopy(layer)
    x = torch.randn({nn.Linear: (5, 6), nn.Conv2d: (5, 3, 8, 8), nn.Conv1d: (5, 2, 9)}[type(layer)])
    before = layer(x)
    scales = {"a": torch.linspace(1, 2, 4), "b": torch.linspace(0.5, 1, 4)} if per_channel else {}
    companded(layer, function=function, **scales)
    torch.testing.assert_close(layer(x), before, rtol=1e-6, atol=1e-6)
    layer.weight = torch.full_like(layer.weight, 0.25)
    torch.testing.assert_close(layer.weight, torch.full_like(layer.weight, 0.25))


@EACH
def test_bound_holds_after_a_huge_step(function):
    layer = companded(function=function, learnable=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e12)
    layer(torch.randn(3, 6)).square().sum().backward()
    latent, before = layer.parametrizations["weight"].original, layer.weight.detach()
    optimizer.param_groups[0]["params"] = [latent]
    optimizer.step()
    limit = {"arctan": math.pi / 2}.get(function, 1.0) * 1.5
    assert float(latent.detach().abs().max()) > 1e9
    assert float(layer.weight.detach().abs().max()) <= limit * (1 + 1e-6)
    torch.testing.assert_close(layer.parametrizations["weight"][0].bound, torch.tensor([limit]))
    assert bool(layer.weight.isfinite().all())
    assert not torch.equal(layer.weight, before)


def test_a_gradient_at_zero_is_amplified_by_the_gain_and_vanishes_at_the_bound():
    layer = companded(a=3.0, b=2.0)
    with torch.no_grad():
        layer.parametrizations["weight"].original[0] = 0.0
        layer.parametrizations["weight"].original[1] = 200.0
    upstream = torch.randn(4, 6)
    (layer.weight * upstream).sum().backward()
    slope = layer.parametrizations["weight"].original.grad / upstream
    torch.testing.assert_close(slope[0], torch.full((6,), 1.5), rtol=1e-6, atol=0)
    # the same in terms of the weight
    torch.testing.assert_close(slope, 1.5 * torch.cos(layer.weight / 3.0).square(), rtol=1e-3, atol=1e-6)
    assert float(slope[1].max()) < 2e-4


def test_wide_functions_reproduce_plain_training():
    torch.manual_seed(0)
    plain = nn.Linear(6, 4)
    layer = copy.deepcopy(plain)
    wide = 100 * float(plain.weight.detach().abs().max())
    companded(layer, a=wide, b=wide)
    x, y = torch.randn(20, 6), torch.randn(20, 4)
    for network in (plain, layer):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            (network(x) - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer.weight, plain.weight, rtol=3e-4, atol=1e-4 * float(plain.weight.abs().max()))


def test_learned_scales_stay_positive_and_fixed_ones_have_no_gradient():
    learned, fixed = companded(learnable=True), companded()
    assert [name for name, _ in fixed.named_parameters()] == ["bias", "parametrizations.weight.original"]
    assert learned.state_dict().keys() == fixed.state_dict().keys()
    compander = learned.parametrizations["weight"][0]
    optimizer = torch.optim.SGD(compander.parameters(), lr=3.0)
    for _ in range(10):
        optimizer.zero_grad()
        (learned.weight.square().sum() + compander.b.sum()).backward()
        optimizer.step()
    assert 0 < float(compander.a) < 1.5
    assert 0 < float(compander.b) < 1.0


@pytest.mark.parametrize("value", [1e-4, 0.15, 3.0, 1e4])
def test_scales_are_what_was_asked_for(value):
    compander = Compander(value, 2 * value)
    torch.testing.assert_close(compander.a, torch.tensor([value]), rtol=2e-6, atol=0)
    torch.testing.assert_close(compander.b, torch.tensor([2 * value]), rtol=2e-6, atol=0)


def test_autocast_computes_in_fp32():
    layer = companded()
    want = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, want)
        assert layer(torch.randn(2, 6)).dtype == torch.bfloat16


def count_computed(monkeypatch):
    """Count how often a weight is computed, not counting those that are known."""
    calls, real = [], compand

    def counted(*arguments, known=None):
        if known is None:
            calls.append(1)
        return real(*arguments, known=known)

    monkeypatch.setitem(Compander.forward.__globals__, "compand", counted)
    return calls


def test_kept_weights_are_computed_once_and_differentiated_every_time(monkeypatch):
    layer = companded(learnable=True)
    other = copy.deepcopy(layer)
    calls = count_computed(monkeypatch)
    layer.parametrizations["weight"][0].reuse(True)
    batches = torch.randn(3, 2, 6)
    for x in batches:
        layer(x).square().sum().backward()
    assert len(calls) == 1
    for x in batches:
        other(x).square().sum().backward()
    assert len(calls) == 4
    for a, b in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_kept_weights_are_forgotten_when_something_changes(monkeypatch):
    layer = companded(learnable=True)
    compander, latent = layer.parametrizations["weight"][0], layer.parametrizations["weight"].original
    calls = count_computed(monkeypatch)
    compander.reuse(True)

    def fresh():
        found = layer.weight.detach().clone()
        compander.reuse(False)
        want = layer.weight.detach().clone()
        compander.reuse(True)
        return torch.equal(found, want)

    changes = [
        lambda: latent.mul_(2.0),
        lambda: compander.rho_a.add_(1.0),
        lambda: compander.rho_b.sub_(1.0),
        lambda: layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()}),
        lambda: setattr(layer, "weight", torch.ones(4, 6)),
    ]
    for change in changes:
        _ = layer.weight
        with torch.no_grad():
            change()
        compander.reuse(True)
        assert fresh()
    with torch.inference_mode():
        _ = layer.weight
    layer(torch.randn(2, 6)).sum().backward()  # not with the tensor of inference mode
    calls.clear()
    with torch.no_grad():
        _ = layer.weight
    layer(torch.randn(2, 6)).sum().backward()
    assert not calls
    assert latent.grad is not None


def test_copies_do_not_go_on_with_a_kept_weight():
    layer = companded()
    layer.parametrizations["weight"][0].reuse(True)
    _ = layer.weight
    twin = copy.deepcopy(layer)
    assert not twin.parametrizations["weight"][0]._reuses
    twin.parametrizations["weight"].original.data.zero_()
    assert not bool(twin.weight.any())
    assert bool(layer.weight.any())


def test_decay_gradient_is_that_of_half_the_squared_weight():
    layer = companded(learnable=True)
    compander, latent = layer.parametrizations["weight"][0], layer.parametrizations["weight"].original
    (0.5 * layer.weight.square().sum()).backward()
    torch.testing.assert_close(compander.decay_gradient(latent), latent.grad)
    assert not compander.decay_gradient(latent).requires_grad


def test_a_compiled_layer_gives_the_same_numbers():
    layer, x = companded(learnable=True), torch.randn(3, 6)
    want = layer(x)
    layer.parametrizations["weight"][0].reuse(True)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": 0.0}, "a is"),
        ({"b": -1.0}, "b is"),
        ({"a": torch.tensor([])}, "a is"),
        ({"b": math.inf}, "b is"),
        ({"a": torch.ones(2)}, "a has 2 numbers and b 1"),
        ({"function": "cube"}, "function is 'cube'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=f"{message}.*; allowed"):
        Compander(**{"a": 1.0, "b": 1.0, **options})


def test_repr_tells_what_it_is():
    assert repr(Compander(1.0, 1.0)) == "Compander(function='arctan', scales=1, learnable=False)"
