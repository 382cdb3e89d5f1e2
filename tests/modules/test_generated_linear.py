"""Layers that take matrices from outside: equal to merged weights, local to a context, gone with it."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_weights.modules import (
    GeneratedLinear,
    GeneratedLoRA,
    adapt_layers,
    inject,
    keep_injected,
    plain_layers,
    samples_of_rows,
)

NAMES = ["0", "2.0"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.SiLU(), nn.Sequential(nn.Linear(6, 4)))


def adapted():
    model = network()
    adapt_layers(model, NAMES)
    return model


def lora(samples=3, scale=0.7, seed=1):
    draw = torch.Generator().manual_seed(seed)

    def pair(inputs, outputs):
        return torch.randn(samples, 2, inputs, generator=draw), torch.randn(samples, outputs, 2, generator=draw)

    return GeneratedLoRA({"0": pair(5, 6), "2.0": pair(6, 4)}, scale)


def merged(adapters, index):
    model = network()
    for name in adapters:
        model.get_submodule(name).weight.data += adapters.delta_weight(name)[index]
    return model


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 2, 4, 5)], ids=str)
def test_each_sample_has_merged_weights_of_its_own(shape):
    model, adapters, x = adapted(), lora(), torch.randn(shape)
    with inject(model, adapters):
        y = model(x)
    for index in range(3):
        torch.testing.assert_close(y[index], merged(adapters, index)(x[index]), rtol=1e-5, atol=1e-5)


def test_matrices_of_one_sample_are_for_all():
    model, adapters, x = adapted(), lora(), torch.randn(3, 7, 5)
    with inject(model, adapters.select(1)):
        y = model(x)
    torch.testing.assert_close(y, merged(adapters, 1)(x), rtol=1e-5, atol=1e-5)
    with inject(model, adapters.select(torch.tensor([1, 1, 1]))):
        torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)


def test_samples_are_permuted_with_their_matrices():
    model, adapters, x, order = adapted(), lora(), torch.randn(3, 7, 5), torch.tensor([2, 0, 1])
    with inject(model, adapters):
        y = model(x)
    with inject(model, adapters.select(order)):
        torch.testing.assert_close(model(x[order]), y[order], rtol=1e-6, atol=1e-6)
    other = adapters.map(lambda tensor: torch.cat([tensor[:1], torch.randn_like(tensor[1:])]))
    with inject(model, other):
        assert torch.equal(model(x)[0], y[0])


def test_outside_the_model_is_itself_in_every_bit():
    model, plain, x = adapted(), network(), torch.randn(3, 5)
    assert torch.equal(model(x), plain(x))
    with inject(model, lora()):
        model(x)
    assert torch.equal(model(x), plain(x))
    failing = model[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), inject(model, lora()):
        model(x)
    failing.remove()
    assert torch.equal(model(x), plain(x))
    with pytest.raises(ValueError, match="of 3 samples"), inject(model, lora()):
        model(torch.randn(2, 5))
    assert torch.equal(model(x), plain(x))
    plain_layers(model)
    assert [type(part) for part in model.modules()] == [type(part) for part in plain.modules()]


def test_zero_b_changes_no_bit():
    model, x = adapted(), torch.randn(3, 5)
    zero = GeneratedLoRA({name: (a, torch.zeros_like(b)) for name, (a, b) in lora().items()}, 1.0)
    with inject(model, zero):
        assert torch.equal(model(x), network()(x))


def test_other_threads_see_nothing():
    model, x, found = adapted(), torch.randn(3, 5), {}
    base, ours, theirs = network()(x), lora(seed=1), lora(seed=2)

    def elsewhere():
        found["outside"] = model(x)
        with inject(model, theirs):
            found["inside"] = model(x)

    with inject(model, ours):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        here = model(x)
    assert torch.equal(found["outside"], base)
    torch.testing.assert_close(found["inside"][1], merged(theirs, 1)(x[1]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(here[1], merged(ours, 1)(x[1]), rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_matrices_alone():
    model, x = adapted(), torch.randn(3, 5)
    adapters = lora().map(lambda tensor: tensor.requires_grad_())
    with inject(model, adapters):
        model(x).square().sum().backward()
    assert all(param.grad is None and not param.requires_grad for param in model.parameters())
    first = adapters["0"][0].grad
    weights = {name: model.get_submodule(name).weight for name in adapters}
    deltas = {name: adapters.delta_weight(name).detach().requires_grad_() for name in adapters}
    hidden = nn.functional.silu(
        torch.einsum("noi,ni->no", weights["0"] + deltas["0"], x) + model.get_submodule("0").bias
    )
    y = torch.einsum("noi,ni->no", weights["2.0"] + deltas["2.0"], hidden) + model.get_submodule("2.0").bias
    y.square().sum().backward()
    expected = adapters.scale * adapters["0"][1].detach().mT @ deltas["0"].grad
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_several_samples():
    """As the experts of a mixture get them."""
    model, adapters = adapted(), lora()
    x, samples = torch.randn(8, 5), torch.tensor([2, 0, 0, 2, 1, 2, 2, 0])
    with inject(model, adapters), samples_of_rows(samples):
        y = model(x)
    expected = torch.stack([merged(adapters, int(own))(row) for own, row in zip(samples, x, strict=True)])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    with (
        pytest.raises(ValueError, match=r"samples of shape \(8,\) for inputs of shape \(4, 5\)"),
        inject(model, adapters),
        samples_of_rows(samples),
    ):
        model(x[:4])
    with (
        pytest.raises(ValueError, match="has sample 3, but the matrices are of 3"),
        inject(model, adapters),
        samples_of_rows(samples + 1),
    ):
        model(x)
    with inject(model, adapters), samples_of_rows(samples[:0]):
        assert model(x[:0]).shape == (0, 4)
    with inject(model, adapters.select(1)), samples_of_rows(samples):  # of one sample, for all
        torch.testing.assert_close(model(x), merged(adapters, 1)(x), rtol=1e-5, atol=1e-5)


def test_gradients_of_rows_are_those_of_samples():
    model, x = adapted(), torch.randn(3, 4, 5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    grads = []
    for rows in (False, True):
        adapters = lora().map(lambda tensor: tensor.requires_grad_())
        with inject(model, adapters):
            if rows:
                with samples_of_rows((torch.arange(12) // 4)[order]):
                    y = model(x.flatten(0, 1)[order])
            else:
                y = model(x).flatten(0, 1)[order]
        y.mul(torch.arange(12.0)[:, None]).sum().backward()
        grads.append([part.grad for pair in adapters.values() for part in pair])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_checkpointed_parts_find_their_matrices_again():
    model, x = adapted(), torch.randn(3, 5)
    plain, again = (lora().map(lambda tensor: tensor.clone().requires_grad_()) for _ in range(2))
    with inject(model, plain):
        loss = model(x).square().sum()
    loss.backward()
    with inject(model, again):
        loss = checkpoint(model, x, use_reentrant=False, context_fn=keep_injected).square().sum()
    loss.backward()
    assert all(torch.equal(plain[name][half].grad, again[name][half].grad) for name in plain for half in (0, 1))


def test_compiled_models_give_the_same():
    torch._dynamo.reset()
    model, x = adapted(), torch.randn(3, 5)
    compiled = torch.compile(model, backend="aot_eager")
    for seed in (1, 2):
        with inject(model, lora(seed=seed)):
            assert torch.equal(compiled(x), model(x))
    assert torch.equal(compiled(x), network()(x))


def test_autocast_and_half_precision():
    model, adapters, x = adapted(), lora(), torch.randn(3, 5)
    with inject(model, adapters):
        exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), inject(model, adapters):
        narrow = model(x)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), exact, rtol=0.1, atol=0.3)
    with inject(model.bfloat16(), adapters):
        assert model(x.bfloat16()).dtype == torch.bfloat16


def test_copies_are_independent():
    model = adapted()
    twin, x = copy.deepcopy(model), torch.randn(3, 5)
    with inject(model, lora()):
        assert not torch.equal(model(x), network()(x))
        assert torch.equal(twin(x), network()(x))


def test_layers_that_were_never_called_are_told():
    model = adapted()
    with pytest.raises(ValueError, match=r"injected for 2.0, but the model never called"), inject(model, lora()):
        model[0](torch.randn(3, 5))


def test_bad_injections():
    model, adapters = adapted(), lora()
    with pytest.raises(ValueError, match="injected matrices already"), inject(model, adapters), inject(model, adapters):
        pass
    for name, there in (("1", "0, 2.0"), ("9", "0, 2.0")):
        with pytest.raises(ValueError, match=f"have '{name}', which is no layer .* there are {there}"):
            inject(model, GeneratedLoRA({name: adapters["0"]}, 1.0)).__enter__()
    with pytest.raises(ValueError, match="none: call adapt_layers"):
        inject(network(), adapters).__enter__()
    with pytest.raises(ValueError, match="for 5 inputs and 6 outputs, but the layer has 6 and 4"):
        inject(model, GeneratedLoRA({"2.0": adapters["0"]}, 1.0)).__enter__()


def test_layers_that_cannot_be_adapted():
    shared = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    shared[1].weight = shared[0].weight
    cases = [
        (network(), "1", "base is a SiLU"),
        (network(), "7", "'7' is no module"),
        (shared, "1", "weight is shared by 0 and 1"),
        (nn.ModuleDict({"mha": nn.MultiheadAttention(4, 1)}), "mha.out_proj", "reads past the layer"),
        (nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 8)]), "0.linear1", "set_fastpath_enabled"),
    ]
    for model, name, message in cases:
        before = [type(part) for part in model.modules()]
        with pytest.raises(ValueError, match=message):
            adapt_layers(model, [name])
        assert [type(part) for part in model.modules()] == before
    model = adapted()
    layer = model[0]
    adapt_layers(model, NAMES)
    assert model[0] is layer


class Doubling(nn.Linear):
    """Stands for a quantized layer: its forward is its own."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_with_a_forward_of_their_own_are_added_to():
    base = Doubling(5, 6)
    layer, x = GeneratedLinear(base), torch.randn(3, 5)
    adapters = GeneratedLoRA({"fc": lora()["0"]}, 1.0)
    model = nn.ModuleDict({"fc": layer})
    with inject(model, adapters):
        y = layer(x)
    torch.testing.assert_close(y, base(x) + torch.einsum("noi,ni->no", adapters.delta_weight("fc"), x))
