"""What quantization does to a network, against the same computed by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.column_solver import (
    CompensationConfig,
    FOEMConfig,
    InputStatistics,
    quantize_weight,
)
from lightning_weights.modules import QuantizedLinear, make_room, quantize
from lightning_weights.modules.quantization import solving
from tests.helpers.blocks import WIDTH, token_batches, transformer

SMALL = {"bits": 3, "group_size": 8, "block_size": 8, "mse_clip": False}
CONFIGS = {
    "rtn": CompensationConfig(method="rtn", **SMALL),
    "gptq": CompensationConfig(method="gptq", **SMALL),
    "gptaq": CompensationConfig(method="gptaq", **SMALL),
    "rescomp": CompensationConfig(method="rescomp", **SMALL),
    "rescomp_gptq": CompensationConfig(method="rescomp_gptq", **SMALL),
    "foem": FOEMConfig(**SMALL),
    "foem_gptaq": FOEMConfig(alpha=0.25, **SMALL),
}
GPTQ, GPTAQ = CONFIGS["gptq"], CONFIGS["gptaq"]

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")
every_method = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def quantized(module: nn.Module, batches: Any, config: Any = GPTQ, **options: Any) -> nn.Module:
    """Return a quantized copy."""
    module = copy.deepcopy(module)
    quantize(module, batches, config, progress=False, **options)
    return module


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def input_of(module: nn.Module, name: str, batch: Tensor) -> Tensor:
    found = []
    handle = module.get_submodule(name).register_forward_pre_hook(lambda layer, args: found.append(args[0].detach()))
    with torch.no_grad():
        module(batch)
    handle.remove()
    return found[0]


def by_hand(module: nn.Module, batches: list[Tensor], config: Any, order: list[str]) -> nn.Module:
    """Quantize layer after layer, running the whole network for each of them."""
    original, module = module.eval(), copy.deepcopy(module).eval()
    for name in order:
        statistics = InputStatistics(module.get_submodule(name).in_features, config.asymmetric)
        for batch in batches:
            full = (input_of(original, name, batch),) if config.asymmetric else ()
            statistics.update(input_of(module, name, batch), *full)
        weight = module.get_submodule(name).weight
        given = () if config.method == "rtn" else (statistics.hessian, statistics.asymmetry)
        weight.data = quantize_weight(weight, *given, config=config).dequantized
    return module


@every_method
def test_layers_are_solved_for_what_the_quantized_layers_before_them_make(config):
    network, batches = transformer(), token_batches()
    order = [f"layers.{i}.{name}" for i in range(2) for name in ("q", "k", "v", "o", "up", "down")]
    expected = by_hand(network, batches, config, [*order, "head"])
    found = quantized(network, batches, config)
    for name, value in expected.state_dict().items():
        assert torch.allclose(value, found.state_dict()[name], atol=1e-6), name
    assert not torch.equal(found.layers[0].q.weight, network.layers[0].q.weight)


@every_method
def test_blocks_one_at_a_time_give_the_bits_of_the_whole_network(config):
    network, batches = transformer(), token_batches()
    whole = quantized(network, batches, config, ignore=["head"])
    assert equal(whole, quantized(network, batches, config, blocks="layers"))
    assert torch.equal(whole.head.weight, network.head.weight)


def test_layers_that_share_an_input_are_solved_as_one_matrix(monkeypatch):
    shapes = []

    def spy(weight: Tensor, *args: Any, **options: Any) -> Any:
        shapes.append(tuple(weight.shape))
        return quantize_weight(weight, *args, **options)

    monkeypatch.setattr(solving, "quantize_weight", spy)
    report = quantize(transformer(blocks=1), token_batches(), GPTQ, progress=False)
    assert shapes == [(48, 16), (16, 16), (32, 16), (16, 32), (20, 16)]
    layers = [f"layers.0.{name}" for name in ("q", "k", "v", "o", "up", "down")]
    assert [row.name for row in report.layers] == [*layers, "head"]


def test_the_report_has_the_error_of_every_layer_and_block():
    network, batches = transformer(), token_batches()
    found = copy.deepcopy(network)
    report = quantize(found, batches, GPTAQ, blocks="layers", progress=False)
    row = report.layers[0]
    x = torch.cat([input_of(network, "layers.0.q", batch) for batch in batches])
    before, after = (net.layers[0].q.weight.detach() for net in (network, found))
    expected = float((x @ (after - before).T).square().sum() / (x @ before.T).square().sum())
    assert row.relative_error == pytest.approx(expected, rel=1e-4)
    assert row.tokens == 4 * 3 * 8
    assert row.damp == 0.01
    assert row.loss > 0
    assert row.seconds > 0
    outputs = [torch.cat([input_of(net, "head", batch) for batch in batches]) for net in (found, network)]
    error = float((outputs[0] - outputs[1]).square().sum() / outputs[1].square().sum())
    assert report.blocks["layers.1"] == pytest.approx(error, rel=1e-4)
    assert report.blocks["layers.0"] < report.blocks["layers.1"]


def test_the_report_does_not_depend_on_how_samples_are_batched():
    data = torch.randn(64, 16)
    reports = []
    for size in (64, 16, 24):
        network = nn.Sequential(nn.Linear(16, 4))
        network[0].weight.data = torch.linspace(-1, 1, 64).reshape(4, 16).sin()
        reports.append(quantize(network, data.split(size), GPTQ, progress=False).layers[0])
    assert [row.loss for row in reports] == pytest.approx([reports[0].loss] * 3, rel=1e-4)
    assert [row.relative_error for row in reports] == pytest.approx([reports[0].relative_error] * 3, rel=1e-4)


def test_blocks_are_measured_where_the_method_needs_one_stream_only():
    network, batches = transformer(), token_batches()
    plain, measured = copy.deepcopy(network), copy.deepcopy(network)
    assert quantize(plain, batches, GPTQ, blocks="layers", progress=False).blocks == {}
    report = quantize(measured, batches, GPTQ, blocks="layers", measure_blocks=True, progress=False)
    assert list(report.blocks) == ["layers.0", "layers.1"]
    assert equal(plain, measured)


def test_nothing_else_changes():
    network = transformer()
    network.layers[0].norm.eval()
    network.layers[1].q.weight.requires_grad_(False)
    network.dropout = nn.Dropout(0.5)
    names = {name: (m.training, [p.requires_grad for p in m.parameters()]) for name, m in network.named_modules()}
    kept = {name: value.clone() for name, value in network.state_dict().items() if "norm" in name or "bias" in name}
    state = torch.get_rng_state()
    identities = [id(p) for p in network.parameters()]
    quantize(network, (torch.randint(20, (2, 8)) for _ in range(3)), GPTQ, progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert identities == [id(p) for p in network.parameters()]
    assert names == {n: (m.training, [p.requires_grad for p in m.parameters()]) for n, m in network.named_modules()}
    assert all(torch.equal(network.state_dict()[name], value) for name, value in kept.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    network(token_batches()[0]).sum().backward()
    assert network.layers[0].q.weight.grad is not None


def test_dropout_is_off_and_weights_can_be_trained_after_inference_mode():
    network = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    batches = [torch.randn(64, 16)]
    expected = quantized(copy.deepcopy(network).eval(), batches)
    with torch.inference_mode():
        quantize(network, batches, GPTQ, progress=False)
    assert equal(network, expected)
    assert not network[0].weight.is_inference()
    network(torch.randn(2, 16)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_type(dtype):
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)
    batches = [torch.randn(64, 16, dtype=dtype)]
    found = quantized(network, batches)
    assert found[0].weight.dtype == dtype
    assert found[0].weight[0].unique().numel() <= 16


def test_autocast_is_for_the_network_and_sees_the_new_weights():
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    batches = [torch.randn(64, 16), torch.randn(64, 16)]

    def step(module: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(batch: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):  # a cache of its own for every run
                return module(batch)

        return run

    for config in (GPTQ, GPTAQ):
        inside, outside = copy.deepcopy(network), copy.deepcopy(network)
        quantize(inside, batches, config, step=step(inside), progress=False)
        with torch.autocast("cpu", torch.bfloat16):
            quantize(outside, batches, config, progress=False)
        assert equal(inside, outside)
        assert not equal(inside, quantized(network, batches, config))


def test_compiled_networks_are_run_as_they_are():
    network, batches = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), [torch.randn(64, 16)]
    expected = quantized(network, batches)
    compiled = torch.compile(copy.deepcopy(network), backend="eager")
    compiled(batches[0])
    report = quantize(compiled, batches, GPTQ, progress=False)
    assert [row.name for row in report.layers] == ["0", "2"]
    assert torch.equal(compiled(batches[0]), expected(batches[0]))


@pytest.mark.parametrize("blocks", [None, "layers"])
def test_packed_layers_compute_what_fake_ones_do_and_load_into_a_fresh_network(blocks):
    network, batches = transformer(), token_batches()
    fake = quantized(network, batches, blocks=blocks)
    packed = quantized(network, batches, blocks=blocks, export="packed").eval()
    assert isinstance(packed.layers[0].q, QuantizedLinear)
    assert isinstance(packed.head, nn.Linear if blocks else QuantizedLinear)
    assert torch.equal(packed(batches[0]), fake.eval()(batches[0]))
    fresh = transformer(seed=5)
    assert len(make_room(fresh, packed.state_dict())) == (12 if blocks else 13)
    fresh.load_state_dict(packed.state_dict())
    assert torch.equal(fresh.eval()(batches[0]), packed(batches[0]))


def test_too_few_tokens_are_warned_about():
    network = nn.Sequential(nn.Linear(64, 8))
    with pytest.warns(LightningWeightsWarning, match=r"1 layers saw fewer .* inputs, 0 0.5 per input"):
        quantize(network, [torch.randn(32, 64)], GPTQ, progress=False)


class Conv(nn.Module):
    """Convolutions of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same", bias=False)
        self.line = nn.Conv1d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return self.line(torch.relu(self.grouped(torch.relu(self.first(x)))).flatten(2))


def test_convolutions_are_solved_as_matrices_of_unfolded_inputs():
    torch.manual_seed(0)
    network, batches = Conv(), [torch.randn(4, 2, 8, 8), torch.randn(4, 2, 8, 8)]
    found = quantized(network, batches)
    statistics = InputStatistics(18)
    for batch in batches:
        padded = nn.functional.pad(batch, (1, 1, 1, 1), mode="reflect")
        statistics.update(nn.functional.unfold(padded, 3, stride=2).mT)
    expected = quantize_weight(network.first.weight.flatten(1), statistics.hessian, config=GPTQ).dequantized
    assert torch.allclose(found.first.weight.flatten(1), expected, atol=1e-6)
    halves = [InputStatistics(18) for _ in range(2)]
    for batch in batches:
        x = torch.relu(found.first(batch)).detach()
        for part, half in zip(halves, x.chunk(2, dim=1), strict=True):
            part.update(nn.functional.unfold(half, 3, dilation=2, padding=2).mT)
    for weight, new, part in zip(network.grouped.weight.chunk(2), found.grouped.weight.chunk(2), halves, strict=True):
        expected = quantize_weight(weight.flatten(1), part.hessian, config=GPTQ).dequantized
        assert torch.allclose(new.flatten(1), expected, atol=1e-6)
    assert not torch.equal(found.line.weight, network.line.weight)


class Loop(nn.Module):
    """A layer that is called again with its own input, which has changed by then."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer, self.in_place = nn.Linear(16, 16), in_place

    def forward(self, x: Tensor) -> Tensor:
        """Return what two rounds make of the inputs."""
        for _ in range(2):
            h = torch.tanh(self.layer(x))
            x = x.add_(h) if self.in_place else x + h
        return x


def test_inputs_that_are_changed_later_count_as_they_were():
    batches = [torch.randn(24, 16)]
    found = Loop(in_place=True)
    expected = Loop(in_place=False)
    expected.load_state_dict(found.state_dict())
    given = batches[0].clone()
    assert equal(quantized(found, batches), quantized(expected, batches))
    assert torch.equal(batches[0], given)


def test_both_streams_draw_the_same_noise(monkeypatch):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.round(self.a(x)) * 0 + torch.randn(len(x), 16))

    differences = []
    update = InputStatistics.update

    def look(self: Any, x: Tensor, x_full: Tensor, mask: Any = None) -> None:
        differences.append(float((x - x_full).abs().max()))
        update(self, x, x_full, mask)

    monkeypatch.setattr(InputStatistics, "update", look)
    quantized(Noisy(), [torch.randn(24, 16), torch.randn(24, 16)], GPTAQ)
    assert differences == [0.0] * 4


def test_masks_count_positions_of_convolutions():
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(6, 4, 3, padding=1)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.conv(x)

    def tokens(length: int) -> int:
        batch = {"x": torch.randn(2, 6, length), "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
        return quantize(Line(), [batch], GPTQ, progress=False).layers[0].tokens

    assert tokens(6) == 10
    assert tokens(8) == 16  # the mask is of something else, though there are as many channels


def test_padding_does_not_count():
    network, tokens = transformer(), token_batches(1, size=2, length=8)[0]
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0

    class Causal(nn.Module):
        """A network in which what comes later changes nothing before."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.a, self.b = network.embedding, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(self.embedding(input_ids))).flatten(0, 1))

    module = Causal()
    batch = {"input_ids": tokens, "attention_mask": mask}
    other = {**batch, "input_ids": tokens.where(mask == 1, (tokens + 1) % 20)}
    assert equal(quantized(module, [batch]), quantized(module, [other]))
    assert not equal(quantized(module, [batch], mask=None), quantized(module, [other], mask=None))
    report = quantize(module, [batch], GPTQ, progress=False)
    assert [row.tokens for row in report.layers] == [13, 13]
    with pytest.raises(ValueError, match="every calibration input of a is padding"):
        quantize(Causal(), [{**batch, "attention_mask": mask * 0}], GPTQ, progress=False)
