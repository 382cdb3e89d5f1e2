"""Blocks that are applied several times in a row."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lightning_weights.modules import CompactViT, StageSharedStack, TransformerBlock, extract_learngene

REPEATS = (2, 1, 3)


def blocks():
    return [TransformerBlock(8, 2, 16).double() for _ in REPEATS]


def tokens():
    return torch.randn(3, 5, 8, dtype=torch.float64)


def untied(stack):
    """Return an ordinary sequence of copies."""
    copies = []
    for stage in stack.stage_of_layer:
        copy = TransformerBlock(8, 2, 16).double()
        copy.load_state_dict(stack[stage].state_dict())
        copies.append(copy)
    return nn.Sequential(*copies)


def test_it_is_the_network_of_copies_and_gradients_are_sums_over_them():
    stack, x = StageSharedStack(blocks(), REPEATS), tokens()
    copies = untied(stack)
    assert torch.equal(stack(x), copies(x))
    weight = torch.randn_like(x)
    (stack(x) * weight).sum().backward()
    (copies(x) * weight).sum().backward()
    for stage, layers in enumerate(stack.layer_of_stage):
        for name, param in stack[stage].named_parameters():
            wanted = sum(copies[layer].get_parameter(name).grad for layer in layers)
            torch.testing.assert_close(param.grad, wanted, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(repeats=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_number_of_parameters_does_not_depend_on_the_repeats(repeats):
    stack = StageSharedStack([nn.Linear(2, 2) for _ in repeats], repeats)
    assert sum(param.numel() for param in stack.parameters()) == 6 * len(repeats)
    assert sum(tensor.numel() for tensor in stack.state_dict().values()) == 6 * len(repeats)
    assert sum(map(len, stack.layer_of_stage)) == len(stack.stage_of_layer) == sum(repeats)
    calls = []
    for index, block in enumerate(stack):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    stack(torch.zeros(1, 2))
    assert calls == stack.stage_of_layer


def test_every_block_once_is_an_ordinary_network_bit_for_bit():
    torch.manual_seed(0)
    plain = CompactViT(depth=3)
    torch.manual_seed(0)
    shared = CompactViT(depth=3, repeats=[1, 1, 1])
    x = torch.randn(2, 64)
    assert plain.state_dict().keys() == shared.state_dict().keys()
    assert torch.equal(plain(x), shared(x))


class Layer(nn.Module):
    """A layer as those of transformers: more arguments, and a tuple."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8).double()

    def forward(self, hidden_states, mask, scale=1.0):
        return hidden_states + scale * self.linear(hidden_states * mask), "attention"


def test_arguments_reach_every_block_and_tuples_are_unpacked():
    stack, x, mask = StageSharedStack([Layer(), Layer()], (2, 1)), tokens(), torch.rand(3, 5, 1).double()
    wanted = x
    for stage in (0, 0, 1):
        wanted = wanted + 0.5 * stack[stage].linear(wanted * mask)
    torch.testing.assert_close(stack(x, mask, scale=0.5), wanted)


def test_albert_shares_its_layers_alike():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    config = transformers.AlbertConfig(**sizes, num_hidden_layers=6, num_hidden_groups=3)
    encoder = transformers.AlbertModel(config).eval().encoder
    stack = StageSharedStack(encoder.albert_layer_groups, (2, 2, 2))
    x = torch.randn(2, 5, 8)
    wanted = encoder(x).last_hidden_state
    assert torch.equal(stack(encoder.embedding_hidden_mapping_in(x)), wanted)


class Counting(nn.Module):
    """Adds one to every sample, and tells with which probabilities it was asked to leave that out."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x, drop_path=0.0):
        self.seen.append(drop_path)
        return x + 1.0


@pytest.mark.parametrize("wrap", [lambda block: block, checkpoint_wrapper, partial(torch.compile, backend="eager")])
def test_probabilities_belong_to_layers_not_to_stages(wrap):
    seen = []
    stack = StageSharedStack([wrap(Counting(seen)), wrap(Counting(seen))], (3, 2), drop_path=0.4)
    stack(torch.zeros(1, 1))
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    seen.clear()
    stack.eval()(torch.zeros(1, 1))
    assert seen == [0.0] * 5


def test_blocks_that_know_nothing_of_it_are_left_out_whole():
    class One(nn.Module):
        def forward(self, x):
            return x + 1.0

    stack = StageSharedStack([One(), One()], drop_path=0.5)
    found = stack(torch.zeros(4000, 2))
    assert set(found[:, 0].tolist()) == {1.0, 3.0}
    assert torch.equal(found[:, 0], found[:, 1])
    assert found.mean().item() == pytest.approx(2.0, abs=0.1)
    assert torch.equal(stack.eval()(torch.zeros(2, 2)), torch.full((2, 2), 2.0))


def test_branches_of_a_transformer_block_are_left_out_one_by_one():
    block, x = TransformerBlock(8, 2, 16), torch.randn(64, 5, 8)
    whole = block.eval()(x) - x
    branch = block.attention(block.norm1(x))
    out = block.train()(x, drop_path=0.5) - x
    kinds = {
        "neither": (out == 0).all((1, 2)),
        "attention alone": torch.isclose(out, 2 * branch, atol=1e-5).all((1, 2)),
    }
    assert all(0 < int(kind.sum()) < 40 for kind in kinds.values())
    assert not torch.allclose(out, whole)


def test_activation_checkpointing_changes_nothing():
    stack, x = StageSharedStack(blocks(), REPEATS), tokens()
    stack(x).square().sum().backward()
    wanted = [param.grad.clone() for param in stack.parameters()]
    stack.zero_grad()
    checkpoint(stack, x, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close([param.grad for param in stack.parameters()], wanted, rtol=1e-10, atol=1e-12)


def test_compilation_unrolls_the_layers_into_one_graph():
    stack, x = StageSharedStack([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())], (2, 1)), torch.randn(3, 4)
    wanted = torch.autograd.grad(stack(x).square().sum(), list(stack.parameters()))
    torch._dynamo.reset()
    out = torch.compile(stack, backend="eager", fullgraph=True)(x)
    found = torch.autograd.grad(out.square().sum(), list(stack.parameters()))
    torch._dynamo.reset()
    torch.testing.assert_close(found, wanted)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def ddp(network):
    return DistributedDataParallel(network)


def fsdp2(network):
    mesh = init_device_mesh("cpu", (1,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


@pytest.mark.parametrize("wrap", [ddp, fsdp2])
def test_distributed_networks_count_every_parameter_once(group, wrap):
    """Used several times per pass, they are ready once: DDP would say so if they were not."""
    network, x = CompactViT(width=8, heads=2, depth=6, repeats=list(REPEATS)), torch.randn(3, 64)
    learngene = extract_learngene(network)
    network(x).square().sum().backward()
    wanted = [param.grad.clone() for param in network.parameters()]
    network.zero_grad()
    wrapped = wrap(network)
    wrapped(x).square().sum().backward()
    found = [getattr(param.grad, "full_tensor", lambda grad=param.grad: grad)() for param in network.parameters()]
    torch.testing.assert_close(found, wanted)
    again = extract_learngene(wrapped)
    assert again.architecture == learngene.architecture
    assert (again.block, again.network) == (learngene.block, learngene.network)
    for mine, theirs in zip([*again.stages, again.rest], [*learngene.stages, learngene.rest], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": (2, 1)}, r"repeats is \[2, 1\], and there are 3 blocks"),
        ({"repeats": (2, 0, 1)}, r"repeats\[1\] is 0"),
        ({"repeats": REPEATS, "drop_path": 1.0}, "drop_path is 1.0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        StageSharedStack(blocks(), **arguments)
