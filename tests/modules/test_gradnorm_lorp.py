"""The layer with normalised rows: what it computes, trains, keeps, folds and becomes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_weights.modules import GradNormLoRPLinear


def layer_of(mode="lowrank", moved=True, seed=0, bias=True, dtype=torch.float32, **options):
    """Return a layer whose magnitude and factors are not those of the start any more."""
    torch.manual_seed(seed)
    layer = GradNormLoRPLinear(nn.Linear(7, 5, bias=bias, dtype=dtype), r=3, alpha=4.0, mode=mode, **options)
    if moved:
        with torch.no_grad():
            layer.magnitude.mul_(torch.linspace(-1.5, 2.0, 5))
            if mode == "lowrank":
                layer.factor_i.normal_(std=0.3)
    return layer


def dense(layer, detach=True):
    """Return W of the equation, from what is trained, in float64."""
    v = layer.weight.double()
    if layer.mode == "lowrank":
        v = v + 4.0 / 3 * layer.factor_i.double() @ layer.factor_j.double()
    norm = v.norm(dim=1, keepdim=True)
    return layer.magnitude.double()[:, None] * v / (norm.detach() if detach else norm)


def x_of(*shape, dtype=torch.float32):
    return torch.randn(*shape, 7, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("mode", ["lowrank", "full"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_layer_that_it_replaces(mode, bias):
    base = nn.Linear(7, 5, bias=bias)
    expected, x = base(x_of(2, 3)), x_of(2, 3)
    layer = GradNormLoRPLinear(base, r=3, mode=mode)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.magnitude, base.weight.norm(dim=1))
    assert layer.weight is base.weight
    assert layer.bias is base.bias


@pytest.mark.parametrize("mode", ["lowrank", "full"])
@pytest.mark.parametrize("detach", [True, False])
def test_outputs_and_gradients_are_those_of_the_dense_weight(mode, detach):
    layer, x = layer_of(mode, detach_norm=detach, dtype=torch.float64), x_of(6, dtype=torch.float64)
    trained = [param for param in layer.parameters() if param.requires_grad]
    assert len(trained) == (4 if mode == "lowrank" else 3)
    target = torch.randn(6, 5, dtype=torch.float64)
    ours, theirs = layer(x), x @ dense(layer, detach).T + layer.bias
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((out - target).square().sum(), trained) for out in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8)


def test_the_exact_gradient_is_orthogonal_to_the_direction():
    for detach, orthogonal in ((False, True), (True, False)):
        layer = layer_of("full", detach_norm=detach)
        layer(x_of(6)).square().sum().backward()
        along = (layer.weight.grad * layer.weight).sum(dim=1)
        assert (along.abs().max() < 1e-4) == orthogonal


@pytest.mark.parametrize("mode", ["lowrank", "full"])
def test_rows_have_the_length_of_the_magnitude(mode):
    layer = layer_of(mode)
    torch.testing.assert_close(layer.effective_weight().norm(dim=1), layer.magnitude.detach().abs())
    torch.testing.assert_close(layer.effective_weight().double(), dense(layer).detach(), rtol=1e-5, atol=1e-6)


def test_the_length_of_directions_does_not_matter():
    layer, x = layer_of("full"), x_of(6)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([0.1, 1.0, 2.0, 30.0, 5.0])[:, None])
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("mode", ["lowrank", "full"])
@pytest.mark.parametrize("trained", [True, False])
def test_merging_gives_a_plain_layer_that_computes_the_same(mode, trained):
    base = nn.Linear(7, 5).requires_grad_(trained).eval()
    layer = GradNormLoRPLinear(base, r=3, mode=mode).eval()
    nn.init.normal_(layer.magnitude)
    state = torch.get_rng_state()
    merged = layer.merge()
    assert type(merged) is nn.Linear
    assert torch.equal(torch.get_rng_state(), state)
    assert (merged.training, merged.weight.requires_grad, merged.bias) == (False, trained, layer.bias)
    torch.testing.assert_close(merged(x_of(4)), layer(x_of(4)), rtol=1e-5, atol=1e-5)
    assert merged.weight is not layer.weight


def test_folding_keeps_outputs_and_starts_factors_anew():
    layer, x = layer_of(), x_of(6)
    before, magnitude, j = layer(x).detach(), layer.magnitude.detach().clone(), layer.factor_j.detach().clone()
    state = torch.get_rng_state()
    layer.fold(torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.magnitude, magnitude)
    assert not layer.factor_i.any()
    assert not torch.equal(layer.factor_j, j)
    torch.testing.assert_close(layer.weight.norm(dim=1), magnitude.abs())
    torch.testing.assert_close(layer.weight_norm_sq, layer.weight.square().sum(dim=1))
    other = layer_of()
    other.fold(torch.Generator().manual_seed(5))
    assert torch.equal(other.factor_j, layer.factor_j)


def test_folding_keeps_the_direction_of_a_row_without_length():
    layer = layer_of()
    with torch.no_grad():
        layer.magnitude[2] = 0.0
        before = (layer.weight + layer.scale * layer.factor_i @ layer.factor_j)[2]
    layer.fold()
    assert torch.cosine_similarity(layer.weight[2], before, dim=0) > 0.9999


def test_dropout_is_for_the_update_only():
    x, layer = x_of(20), layer_of(dropout=0.5, bias=False)
    torch.testing.assert_close(layer.eval()(x), layer_of(bias=False)(x))
    torch.manual_seed(2)
    found = layer.train()(x)
    torch.manual_seed(2)
    dropped = nn.functional.dropout(x, 0.5)
    products = x @ layer.weight.T + layer.scale * dropped @ layer.factor_j.T @ layer.factor_i.T
    norms = (layer.weight + layer.scale * layer.factor_i @ layer.factor_j).norm(dim=1)
    torch.testing.assert_close(found, products * layer.magnitude / norms)


@pytest.mark.parametrize("mode", ["lowrank", "full"])
def test_rows_and_biases_of_zeros_stay_finite(mode):
    base = nn.Linear(7, 5)
    with torch.no_grad():
        base.weight[1].zero_()
        base.bias.zero_()
    layer = GradNormLoRPLinear(base, r=3, mode=mode, detach_norm=False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        layer(x_of(6)).square().sum().backward()
        optimizer.step()
    assert all(param.isfinite().all() for param in layer.parameters())
    assert not layer.effective_weight()[1].any()
    assert layer.magnitude.grad.isfinite().all()


def test_names_in_state_dicts_are_those_of_a_plain_layer_and_the_new_ones():
    layer = layer_of()
    assert set(layer.state_dict()) == {"weight", "bias", "magnitude", "factor_i", "factor_j"}
    assert set(layer_of("full").state_dict()) == {"weight", "bias", "magnitude"}
    result = layer.load_state_dict(nn.Linear(7, 5).state_dict(), strict=False)
    assert (set(result.missing_keys), result.unexpected_keys) == ({"magnitude", "factor_i", "factor_j"}, [])


def test_norms_follow_the_weight():
    layer, other = layer_of(), layer_of(seed=3)
    twin = copy.deepcopy(layer)
    kept = layer.weight_norm_sq.clone()
    twin.load_state_dict(other.state_dict())
    torch.testing.assert_close(twin(x_of(4)), other(x_of(4)))
    assert torch.equal(layer.weight_norm_sq, kept), "a copy measures itself"
    half = copy.deepcopy(layer).bfloat16()
    assert half.weight_norm_sq.dtype == torch.float32
    torch.testing.assert_close(half.weight_norm_sq, half.weight.float().square().sum(dim=1))
    assert copy.deepcopy(layer).double().weight_norm_sq.dtype == torch.float64
    unpickled = pickle.loads(pickle.dumps(layer))
    assert torch.equal(unpickled(x_of(4)), layer(x_of(4)))


def test_half_precision_layers_answer_in_half_precision():
    layer = layer_of()
    half = copy.deepcopy(layer).bfloat16()
    assert half(x_of(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert half.effective_weight().dtype == torch.bfloat16
    torch.testing.assert_close(half(x_of(4, dtype=torch.bfloat16)).float(), layer(x_of(4)), rtol=0.05, atol=0.05)


def test_the_size_of_the_update_is_that_of_its_product():
    layer = layer_of()
    product = 4.0 / 3 * layer.factor_i @ layer.factor_j
    torch.testing.assert_close(layer.update_size(), product.norm() / layer.weight.norm())
    assert layer_of("full").update_size() == 0


def test_the_forward_pass_compiles_whole():
    layer, x = layer_of(dtype=torch.float64), x_of(4, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.factor_i.grad.any()


def test_it_is_pefts_dora():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 5))
    layer = GradNormLoRPLinear(copy.deepcopy(network[0]), r=3, alpha=4.0)
    config = peft.LoraConfig(r=3, lora_alpha=4.0, target_modules=["0"], use_dora=True)
    dora = peft.get_peft_model(network, config).base_model.model[0]
    theirs = [dora.lora_B["default"].weight, dora.lora_A["default"].weight]
    theirs += [dora.lora_magnitude_vector["default"].weight]
    ours = [layer.factor_i, layer.factor_j, layer.magnitude]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.copy_(torch.randn(other.shape) + (mine if mine is layer.magnitude else 0.0))
            mine.copy_(other)
    outputs = [module(x_of(6)) for module in (layer, dora)]
    torch.testing.assert_close(*outputs)
    for mine, other in zip(
        torch.autograd.grad(outputs[0].square().sum(), ours),
        torch.autograd.grad(outputs[1].square().sum(), theirs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (nn.Conv1d(3, 3, 1), {}, "base"),
        (nn.Linear(3, 3, device="meta"), {}, "base"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), {"mode": "full"}, "whose weight is a parameter"),
        (nn.Linear(3, 3), {"r": 0}, "r is 0"),
        (nn.Linear(3, 3), {"alpha": 0.0}, "alpha"),
        (nn.Linear(3, 3), {"dropout": 1.0}, "dropout"),
        (nn.Linear(3, 3), {"mode": "dense"}, "mode"),
        (nn.Linear(3, 3), {"mode": "full", "dropout": 0.1}, "dropout"),
    ],
)
def test_wrong_arguments_are_named(base, options, message):
    with pytest.raises(ValueError, match=message):
        GradNormLoRPLinear(base, **options)
    assert all(param.requires_grad for param in base.parameters())


def test_there_is_nothing_to_fold_in_the_full_mode():
    with pytest.raises(ValueError, match="mode"):
        layer_of("full").fold()
