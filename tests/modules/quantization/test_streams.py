"""Networks whose blocks are run one at a time, and those whose blocks can't be."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_weights.functional.column_solver import CompensationConfig
from lightning_weights.modules import CausalLM, quantize

CONFIG = CompensationConfig(method="gptaq", bits=4, group_size=8, mse_clip=False)
BATCHES = [torch.randn(24, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer calibration tokens.*")


class Block(nn.Module):
    """A block that can be called in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.caches: list[Any] = []

    def forward(
        self, x: Tensor, shift: Any = 0.0, past_key_values: Any = None, use_cache: bool = False, form: str = "tensor"
    ) -> Any:
        """Return what goes into the next block, in several forms."""
        self.caches.append((past_key_values, use_cache))
        y = torch.tanh(self.linear(x)) + shift
        if form == "in place":
            return x.copy_(y)
        return {"tensor": y, "tuple": (x, y), "dict": {"other": x, "hidden": y}}[form]


class Net(nn.Module):
    """Three blocks; what a subclass does says how they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs."""
        for index, block in enumerate(self.blocks):
            x = self.call(block, x, index)
        return x

    def call(self, block: nn.Module, x: Tensor, index: int) -> Tensor:
        """Call a block."""
        return block(x)


def net_with(call: Any) -> nn.Module:
    torch.manual_seed(0)
    return type("Some", (Net,), {"call": call})()


WAYS = {
    "plain": lambda self, block, x, index: block(x),
    "by name": lambda self, block, x, index: block(x=x, shift=0.1),
    "tuples": lambda self, block, x, index: block(x, form="tuple")[1],
    "dicts": lambda self, block, x, index: block(x, form="dict")["hidden"],
    "one argument per batch": lambda self, block, x, index: block(x, x[0, 0].detach() * 0 + len(x)),
    "one argument per block": lambda self, block, x, index: block(x, torch.full((8,), 0.1 * index)),
    "its input changed": lambda self, block, x, index: block(x * 1 if index == 0 else x, form="in place"),
    "a cache": lambda self, block, x, index: block(x, past_key_values=[], use_cache=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_blocks_give_the_bits_of_the_whole_network(way):
    network = net_with(WAYS[way])
    whole, blockwise = copy.deepcopy(network), copy.deepcopy(network)
    quantize(whole, BATCHES, CONFIG, progress=False)
    report = quantize(blockwise, BATCHES, CONFIG, blocks="blocks", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), blockwise.parameters(), strict=True))
    assert not torch.equal(next(whole.parameters()), next(network.parameters()))
    assert len(report.blocks) == 3


def test_caches_are_neither_kept_nor_made():
    network = net_with(WAYS["a cache"])
    quantize(network, BATCHES, CONFIG, blocks="blocks", progress=False)
    assert network.blocks[1].caches[-1] == (None, False)


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_blocks_of_a_language_model_that_caches_by_default(method):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    network = CausalLM(config={"model_type": "llama", "vocab_size": 32, **shape}).model
    assert network.config.use_cache
    tokens, mask = torch.randint(32, (2, 3, 6)), torch.ones(3, 6, dtype=torch.long)
    padded = mask.clone()
    padded[0, 4:] = 0
    batches = [{"input_ids": tokens[0], "attention_mask": mask}, {"input_ids": tokens[1], "attention_mask": padded}]
    whole, config = copy.deepcopy(network), replace(CONFIG, method=method)
    quantize(whole, batches, config, targets="[qkvo]_proj", progress=False)
    quantize(network, batches, config, targets="[qkvo]_proj", blocks="model.layers", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), network.parameters(), strict=True))


BROKEN = {
    "something in between": (lambda self, block, x, index: block(x + 1), "into blocks.1 is not what comes out of"),
    "called twice": (lambda self, block, x, index: block(block(x)), "called in their order"),
    "left out": (lambda self, block, x, index: x if index == 1 else block(x), "2 of 3 blocks were called"),
    "other arguments": (
        lambda self, block, x, index: block(x=x) if index else block(x),
        "blocks.0 is called with other arguments",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_blocks_that_do_not_follow_each_other_are_refused(case):
    call, message = BROKEN[case]
    network = net_with(call)
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match=message):
        quantize(network, BATCHES, CONFIG, blocks="blocks", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in network.modules())


def test_a_block_in_two_places_and_a_weight_in_two_blocks_are_refused():
    network = net_with(WAYS["plain"])
    network.blocks[2] = network.blocks[0]
    with pytest.raises(ValueError, match="holds a block several times"):
        quantize(network, BATCHES, CONFIG, blocks="blocks", progress=False)
    network = net_with(WAYS["plain"])
    network.blocks[2].linear.weight = network.blocks[0].linear.weight
    message = r"weights of blocks.0.linear are used in several blocks"
    with pytest.warns(match="share a weight"), pytest.raises(ValueError, match=message):
        quantize(network, BATCHES, CONFIG, blocks="blocks", progress=False)


def test_a_single_block_that_returns_several_things():
    network = net_with(WAYS["tuples"])
    network.blocks = network.blocks[:1]
    report = quantize(network, BATCHES, CONFIG, blocks="blocks", progress=False)
    assert list(report.blocks) == ["blocks.0"]


def test_a_sequential_may_hold_the_blocks():
    inner = nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    network = nn.Sequential(nn.Linear(8, 8), inner, nn.Linear(8, 2))
    original, whole = copy.deepcopy(network), copy.deepcopy(network)
    quantize(whole, BATCHES, CONFIG, targets=r"1\.[13]", progress=False)
    quantize(network, BATCHES, CONFIG, blocks="1", ignore=(), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), whole.parameters(), strict=True))
    assert torch.equal(network[0].weight, original[0].weight)
    assert not torch.equal(network[1][1].weight, original[1][1].weight)
