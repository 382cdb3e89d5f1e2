"""What can't be quantized, and what is done with layers that no batch reaches."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_weights.errors import LightningWeightsWarning, ShardedParameterError
from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules import quantize
from lightning_weights.modules.quantization.inputs import StreamMismatchError
from tests.helpers.blocks import token_batches, transformer

GPTQ = CompensationConfig(method="gptq", bits=4, group_size=8, mse_clip=False)
GPTAQ = CompensationConfig(method="gptaq", bits=4, group_size=8, mse_clip=False)

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")


def refuse(module: nn.Module, batches: Any, match: str, config: Any = GPTQ, error: Any = ValueError, **options: Any):
    """Expect an error before any weight has changed."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(error, match=match):
        quantize(module, batches, config, progress=False, **options)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert not any(part._forward_pre_hooks for part in module.modules())


def linear(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


DATA = [torch.randn(32, 16, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("export", "int8"),
        ("on_missing", "ignore"),
        ("blocks", "head"),
        ("targets", "conv.*"),
        ("targets", "*"),
        ("ignore", "head"),
        ("ignore", ["("]),
        ("cache_device", "nowhere"),
    ],
)
def test_arguments(name, value):
    refuse(transformer(), token_batches(), name, **{name: value})


def test_no_batches():
    refuse(linear(16, 8), [], "batches is empty")


def test_blocks_name_the_containers_there_are():
    refuse(transformer(), token_batches(), r"allowed is the name of a ModuleList or Sequential.*: layers", blocks="h")


def test_targets_and_ignore_are_expressions_of_names_or_their_last_parts():
    network, batches = transformer(), token_batches()
    report = quantize(network, batches, GPTQ, targets="q|layers.1.*", ignore=["down", "1.[kv]"], progress=False)
    assert [row.name for row in report.layers] == [
        "layers.0.q",
        *(f"layers.1.{name}" for name in ("q", "o", "up")),
    ]
    refuse(
        transformer(),
        batches,
        "names no Linear or Conv layer to quantize; there are layers.0.q",
        ignore=["layers", "head"],
    )


def test_a_layer_is_quantized_once():
    network = linear(16, 16, 8)
    quantize(network, DATA, GPTQ, progress=False)
    refuse(network, DATA, "0 was quantized already, by gptq")
    refuse(copy.deepcopy(network), DATA, "quantized already")
    packed = linear(16, 8)
    quantize(packed, DATA, GPTQ, export="packed", progress=False)
    refuse(packed, DATA, "0 was quantized already, by gptq")


def test_original_weights_that_are_loaded_again_are_quantized_again():
    network = linear(16, 16, 8)
    original = copy.deepcopy(network.state_dict())
    quantize(network, DATA, GPTQ, progress=False)
    first = copy.deepcopy(network.state_dict())
    refuse(network.bfloat16().float(), DATA, "quantized already")
    network.load_state_dict(original)
    quantize(network, DATA, GPTQ, progress=False)
    assert all(torch.equal(first[name], value) for name, value in network.state_dict().items())


def test_convolutions_are_not_packed():
    network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 2))
    refuse(network, [torch.randn(4, 2, 8)], "only linear layers can be packed, not 0", export="packed")


def test_what_packing_would_lose_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    refuse(nn.Sequential(Doubled(16, 8)), DATA, "not 0, which .* a forward of their own", export="packed")
    refuse(nn.Linear(16, 8), DATA, "the module is itself the layer", export="packed")


def test_a_weight_that_the_embedding_uses_is_refused_unless_forced():
    network = transformer()
    network.head.weight = network.embedding.weight
    refuse(network, token_batches(), r"the weight of head is that of embedding, too.*ignore, .*force_tied=True")
    report = quantize(network, token_batches(), GPTQ, force_tied=True, progress=False)
    assert report.layers[-1].name == "head"
    assert network.head.weight is network.embedding.weight


def test_lm_heads_are_left_out_by_default():
    network = nn.ModuleDict({"body": nn.Linear(16, 16), "lm_head": nn.Linear(16, 4)})
    network.forward = lambda x: network["lm_head"](network["body"](x))
    report = quantize(network, DATA, GPTQ, progress=False)
    assert [row.name for row in report.layers] == ["body"]


def test_a_shared_weight_is_quantized_once_for_all_its_inputs():
    network = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    network[2].weight = network[0].weight
    original = network[0].weight.detach().clone()
    with pytest.warns(LightningWeightsWarning, match="0 and 2 share a weight"):
        report = quantize(network, DATA, GPTQ, progress=False)
    assert [(row.name, row.tokens) for row in report.layers] == [("0", 64)]
    assert network[2].weight is network[0].weight
    once = nn.Sequential(nn.Linear(16, 16))
    once[0].weight.data = original
    second = torch.tanh(DATA[0] @ original.T + network[0].bias.detach())
    quantize(once, [DATA[0], second], GPTQ, progress=False)
    assert torch.allclose(once[0].weight, network[0].weight, atol=1e-6)


def test_a_layer_that_is_called_several_times_sees_all_its_inputs():
    layer = nn.Linear(16, 16)
    network = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer)
    report = quantize(network, [*DATA, *DATA], GPTQ, progress=False)
    assert [(row.name, row.tokens) for row in report.layers] == [("0", 6 * 32)]


def test_parametrized_and_empty_weights():
    network = linear(16, 8)
    nn.utils.parametrizations.weight_norm(network[0])
    with pytest.raises(ValueError, match="0 has a weight that something else computes"):
        quantize(network, DATA, GPTQ)
    with pytest.raises(ValueError, match="no values yet"):
        quantize(nn.Sequential(nn.Linear(16, 8, device="meta")), DATA, GPTQ)
    with pytest.raises(ValueError, match="no values yet"):
        quantize(nn.Sequential(nn.LazyLinear(8)), DATA, GPTQ)


def test_networks_inside_fsdp():
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # a real one needs an accelerator
    nn.Module.__init__(wrapper)
    with pytest.raises(ShardedParameterError, match="FSDP shards them; use DDP"):
        quantize(nn.Sequential(nn.Linear(16, 8), wrapper), DATA, GPTQ)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_inputs_name_the_layer_and_the_batch(value):
    class Spoil(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 100, torch.tensor(value), x)

    network = nn.Sequential(Spoil(), nn.Linear(16, 16))
    bad = DATA[0].clone()
    bad[3, 2] = 101.0
    refuse(network, [DATA[0], bad], "the inputs of 1 hold NaN or infinity in calibration batch 1")


class Branches(nn.Module):
    """A network with a head that is not used, and experts that see some batches only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused = nn.Linear(16, 16), nn.Linear(16, 4)
        self.experts = nn.ModuleList(nn.Linear(16, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return what an expert makes of the inputs; the first number chooses it."""
        return self.experts[int(x[0, 0].abs() > 10.0)](torch.tanh(self.body(x)))


def branch_batches() -> list[Tensor]:
    other = DATA[0].clone()
    other[0, 0] = 11.0
    return [DATA[0], other, DATA[0]]


def test_layers_that_no_batch_reaches_are_listed_before_anything_changes():
    refuse(Branches(), branch_batches(), r"no calibration batch reaches unused, experts.2: .*on_missing")


class Routing(nn.Module):
    """Experts that are all called, each with the inputs whose first number is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the experts make of the inputs."""
        return torch.cat([expert(x[x[:, 0] == index]) for index, expert in enumerate(self.experts)])


def test_experts_without_a_token_are_not_reached():
    first, second = DATA[0].clone(), DATA[0].clone()
    first[:, 0], second[:, 0] = 0.0, 1.0
    refuse(Routing(), [first, second], r"no calibration batch reaches experts.2: .*an expert without a token")
    network = Routing()
    before = network.experts[2].weight.detach().clone()
    report = quantize(network, [first, second], GPTQ, on_missing="skip", progress=False)
    assert report.skipped == ["experts.2"]
    assert [(row.name, row.tokens) for row in report.layers] == [("experts.0", 32), ("experts.1", 32)]
    assert torch.equal(network.experts[2].weight, before)


def test_they_can_be_left_alone():
    network = Branches()
    before = network.unused.weight.detach().clone()
    report = quantize(network, branch_batches(), GPTQ, on_missing="skip", progress=False)
    assert report.skipped == ["unused", "experts.2"]
    assert [row.name for row in report.layers] == ["body", "experts.0", "experts.1"]
    assert [row.tokens for row in report.layers] == [96, 64, 32]
    assert torch.equal(network.unused.weight, before)
    assert "unused was reached by no batch" in report.describe()


def test_they_can_be_rounded():
    network = Branches()
    expected = nn.Sequential(copy.deepcopy(network.unused))
    rtn = CompensationConfig(method="rtn", bits=4, group_size=8, mse_clip=False)
    quantize(expected, DATA, rtn, progress=False)
    report = quantize(network, branch_batches(), GPTQ, on_missing="rtn", progress=False)
    assert [(row.name, row.method) for row in report.layers[:2]] == [("unused", "rtn"), ("experts.2", "rtn")]
    assert torch.equal(network.unused.weight, expected[0].weight)
    assert report.layers[0].loss is None


def test_attention_whose_weights_are_read_is_told_apart_from_layers_that_are_called():
    network = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    batches = [torch.randn(4, 8, 16)]
    refuse(network, batches, "reaches self_attn.out_proj: .*MultiheadAttention")
    report = quantize(network, batches, GPTQ, ignore=["self_attn"], progress=False)
    assert [row.name for row in report.layers] == ["linear1", "linear2"]
    assert torch.backends.mha.get_fastpath_enabled()


class Routed(nn.Module):
    """A network in which values choose what goes into the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs for the inputs that are chosen."""
        h = self.a(x)
        return self.b(h[h[:, 0] > h[:, 0].median() + 1e-3 * h[:, 1]])


def test_streams_that_part_ways_are_refused():
    torch.manual_seed(0)
    with pytest.raises(StreamMismatchError, match=r"b got inputs of the shapes .* method with one stream"):
        quantize(Routed(), [torch.randn(400, 16)], GPTAQ, progress=False)


def test_deep_networks_are_told_of_their_blocks():
    with pytest.warns(LightningWeightsWarning, match="blocks='layers' runs one block at a time"):
        quantize(transformer(blocks=3), token_batches(), GPTQ, progress=False)
