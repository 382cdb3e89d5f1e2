"""Companding networks: what stays, what is refused, checkpoints from plain to companded and back, parameter groups."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import (
    MLP,
    Compander,
    compand_layers,
    find_parametrizations,
    merge_companders,
    plain_state_dict,
    unmerge_companders,
    wc_param_groups,
)

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def network():
    return MLP(6, (8, 7), 3, batch_norm=True)


def layers_of(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def companded(module=None, **options):
    module = network() if module is None else module
    compand_layers(layers_of(module), **options)
    return module


VARIANTS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"function": "tanh", "kappa": 4.0},
        {"function": "softsign", "kappa": 5.0, "share": "channel"},
        {"share": "global", "kappa": 5.0},
        {"learnable": True},
    ],
    ids=str,
)


@VARIANTS
def test_merging_undoes_companding(options):
    plain = network().eval()
    want, keys = plain(X), list(plain.state_dict())
    order = [name for name, _ in plain.named_parameters()]
    identities = {name: id(param) for name, param in plain.named_parameters()}
    companded(plain, **options)
    torch.testing.assert_close(plain(X), want, rtol=1e-6, atol=1e-6)
    assert len(list(find_parametrizations(plain, Compander))) == 3
    merge_companders(plain)
    torch.testing.assert_close(plain(X), want, rtol=1e-6, atol=1e-6)
    assert list(plain.state_dict()) == keys
    assert [name for name, _ in plain.named_parameters()] == order
    assert {name: id(param) for name, param in plain.named_parameters()} == identities
    assert [type(layer) for layer in layers_of(plain).values()] == [nn.Linear] * 3


@VARIANTS
def test_unmerging_goes_on_with_the_same_scales(options):
    module = companded(**options).eval()
    with torch.no_grad():
        for param in module.parameters():
            param.add_(0.05 * torch.randn_like(param))
    want, state = module(X), copy.deepcopy(module.state_dict())
    unmerge_companders(module, merge_companders(module))
    torch.testing.assert_close(module(X), want, rtol=1e-5, atol=1e-6)
    assert module.state_dict().keys() == state.keys()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5)


def test_merging_leaves_copies_companded():
    module = companded()
    twin = copy.deepcopy(module)
    merge_companders(module)
    assert len(list(find_parametrizations(twin, Compander))) == 3
    assert torch.equal(twin.head.weight, module.head.weight)


@VARIANTS
def test_plain_checkpoints_load_into_companded_networks_and_back(options):
    plain = network().eval()
    with torch.no_grad():
        plain.head.weight.mul_(3.0)  # another spread than that of a fresh network
        if options.get("share") == "global":
            plain.head.weight.div_(3.0)
    module = companded(**options).eval()
    module.load_state_dict(plain.state_dict())
    torch.testing.assert_close(module(X), plain(X), rtol=1e-5, atol=1e-5)
    back = network().eval()
    back.load_state_dict(plain_state_dict(module.state_dict(), options.get("function", "arctan")))
    torch.testing.assert_close(back(X), plain(X), rtol=1e-5, atol=1e-5)
    if options.get("share", "layer") == "layer":
        compander = module.head.parametrizations["weight"][0]
        sigma = plain.head.weight.std(correction=0).reshape(1)
        torch.testing.assert_close(compander.a, options.get("kappa", 3.0) * sigma)


def test_companded_checkpoints_load_as_they_are():
    module, other = companded(learnable=True), companded()
    other.load_state_dict(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert torch.equal(module.eval()(X), other.eval()(X))


def test_a_layer_alone_and_a_copy_load_plain_weights_too():
    module = copy.deepcopy(companded())
    state = nn.Linear(7, 3).state_dict()
    module.head.load_state_dict(state)
    torch.testing.assert_close(module.head.weight, state["weight"], rtol=1e-5, atol=1e-6)
    merge_companders(module)
    module.head.load_state_dict(state)
    assert torch.equal(module.head.weight, state["weight"])


def test_a_missing_weight_is_still_missing():
    state = network().state_dict()
    del state["head.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.parametrizations\.weight\.original"):
        companded().load_state_dict(state)


def test_global_scales_are_one_parameter():
    module = companded(share="global", learnable=True)
    steps = [found.step for found in find_parametrizations(module, Compander)]
    assert len({id(step.rho_a) for step in steps}) == len({id(step.rho_b) for step in steps}) == 1
    assert sum(name.endswith("rho_a") for name, _ in module.named_parameters()) == 1
    pooled = torch.cat([layer.weight.detach().flatten() for layer in layers_of(network()).values()])
    assert float(steps[0].a) == pytest.approx(3 * float(pooled.std(correction=0)), rel=0.2)
    twin = copy.deepcopy(module)
    assert len({id(found.step.rho_a) for found in find_parametrizations(twin, Compander)}) == 1


def test_channels_have_scales_of_their_own():
    module = companded(share="channel")
    weight, compander = module.head.weight, module.head.parametrizations["weight"][0]
    torch.testing.assert_close(compander.a, 3 * weight.std(dim=1, correction=0), rtol=1e-4, atol=0)
    assert compander.a.shape == (3,)


def test_latent_init_companded_the_draw():
    plain = network()
    draw = plain.head.weight.detach().clone()
    module = companded(plain, init="latent")
    assert torch.equal(module.head.parametrizations["weight"].original, draw)
    a, b = 3 * draw.std(correction=0), 2 * draw.std(correction=0)
    torch.testing.assert_close(module.head.weight, a * torch.atan(draw / b))


def test_layers_without_spread_are_refused_by_name():
    module = network()
    nn.init.zeros_(module.head.weight)
    with pytest.raises(ValueError, match=r"cannot compand head: .* all equal .* no scale"):
        companded(module)
    assert not list(find_parametrizations(module, Compander)), "something was changed before the check"
    with torch.no_grad():
        module.head.weight[1:].normal_()
    with pytest.raises(ValueError, match=r"cannot compand head"):
        companded(module, share="channel")
    parametrize.register_parametrization(module.head, "weight", Compander(a=1.0, b=1.0))
    assert not bool(module.head.weight[0].any())


def test_clipped_weights_are_told_and_too_many_refused():
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    nn.init.normal_(layer.weight)
    with torch.no_grad():
        layer.weight.view(-1)[:20] = 30.0  # 0.2 %
    with pytest.warns(LightningWeightsWarning, match=r"0\.2.% of the weights of layer .* clipped; raise kappa"):
        compand_layers({"layer": layer})
    layer = nn.Linear(100, 100)
    nn.init.normal_(layer.weight)
    with pytest.raises(ValueError, match=r"% of the weights of layer are beyond .*raise kappa"):
        compand_layers({"layer": layer}, kappa=1.0)
    assert not parametrize.is_parametrized(layer)
    module = companded(share="global", kappa=5.0)
    state = network().state_dict()
    state["head.weight"][0, :3] = 1e3
    with pytest.raises(ValueError, match="of head are beyond the bound"):
        module.load_state_dict(state)


def test_groups_decay_latents_and_spare_the_rest():
    module = companded(learnable=True)
    module.body[1].bias.requires_grad_(False)
    matrices, vectors, scales = wc_param_groups(module, 0.01, lr=0.1, lr_scale=0.5)
    latents = {id(layer.parametrizations["weight"].original) for layer in layers_of(module).values()}
    assert {id(param) for param in matrices["params"]} == latents
    assert (matrices["weight_decay"], matrices["lr"]) == (0.01, 0.1)
    assert (vectors["weight_decay"], vectors["lr"], scales["weight_decay"], scales["lr"]) == (0.0, 0.1, 0.0, 0.05)
    assert len(scales["params"]) == 6
    everything = [id(param) for group in (matrices, vectors, scales) for param in group["params"]]
    assert sorted(everything) == sorted(id(param) for param in module.parameters() if param.requires_grad)
    torch.optim.AdamW([matrices, vectors, scales])
    assert [group["weight_decay"] for group in wc_param_groups(network(), 0.01)] == [0.01, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: companded(share="row"), "share is 'row'"),
        (lambda: companded(init="cold"), "init is 'cold'"),
        (lambda: companded(function="cube"), "function is 'cube'"),
        (lambda: companded(kappa=0.0), "kappa is 0.0"),
        (lambda: companded(beta=-1.0), "beta is -1.0"),
        (lambda: wc_param_groups(network(), -1.0), "weight_decay is -1.0"),
        (lambda: wc_param_groups(network(), 0.0, lr_scale=0.5), "lr_scale is 0.5, but lr is None"),
        (lambda: plain_state_dict({}, "cube"), "function is 'cube'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
