"""The generator: what it starts as, what it may depend on, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.modules import WeightGenerator
from tests.helpers.edits import COND, TARGETS, awake, backbone, generator


def condition(size=3, length=5):
    return torch.randn(size, length, COND)


def test_b_is_zero_at_first_and_a_is_not():
    adapters = generator()(condition())
    assert all(not b.any() and a.any() for a, b in adapters.values())
    loud = generator(zero_init=False)(condition())
    assert all(b.any() for _, b in loud.values())


def test_only_the_head_of_b_learns_in_the_first_step():
    made = generator()
    adapters = made(condition())
    sum((b @ a).sum() for a, b in adapters.values()).backward()
    moved = {name for name, param in made.named_parameters() if param.grad is not None and param.grad.any()}
    assert moved == {"head_b.weight", "head_b.bias"}


def test_samples_depend_on_their_own_condition_alone():
    made, own = awake(generator()), condition()
    found = made(own).flatten()
    other = torch.cat([own[:1], torch.randn_like(own[1:])])
    assert torch.equal(made(other).flatten()[0], found[0])
    assert not torch.allclose(made(other).flatten()[1], found[1])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(made(own[order]).flatten(), found[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made(own[:1]).flatten(), found[:1], rtol=1e-5, atol=1e-6)


def test_padded_tokens_change_nothing():
    made, own = awake(generator()), condition()
    found = made(own).flatten()
    padded = torch.cat([own, 100 * torch.randn(3, 4, COND)], dim=1)
    mask = torch.arange(9).expand(3, 9) < 5
    torch.testing.assert_close(made(padded, mask).flatten(), found, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made(own, torch.ones(3, 5, dtype=torch.bool)).flatten(), found, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made(padded).flatten(), found)


def test_a_constant_condition_gives_one_set_of_matrices():
    adapters = awake(generator())(condition(1).expand(4, -1, -1))
    assert torch.equal(adapters.flatten(), adapters.flatten()[:1].expand(4, -1))


def test_the_numbers_of_all_layers():
    made = generator()
    adapters = made(condition())
    assert made.numbers == 2 * sum(4 * (i + o) for i, o in TARGETS.values()) == adapters.flatten().shape[1]
    assert list(adapters) == made.names == list(made.sizes)
    assert made.names == [f"blocks.{n}.{name}" for n in range(2) for name in TARGETS]
    assert adapters.scale == 1.0


@pytest.mark.parametrize("layout", ["flat", "rank"])
def test_layouts_and_experts(layout):
    targets = {"o": [5, 7], "experts": {"experts": 2, "weights": {"w1": [5, 3], "w2": [3, 5]}}}
    made = WeightGenerator(targets, 2, COND, rank=4, token_dim=6, dim=16, head_dim=8, depth=1, layout=layout)
    found = awake(made)(condition())
    assert "layers.1.experts.1.w2" in found
    assert [tuple(part.shape) for part in found["layers.0.experts.1.w1"]] == [(3, 4, 5), (3, 3, 4)]
    assert found.flatten().shape[1] == made.numbers


def test_checkpointing_changes_no_bit():
    plain = awake(generator(depth=2))
    again = copy.deepcopy(plain)
    again.checkpointing, own = True, condition()
    for made in (plain, again):
        made(own).flatten().square().sum().backward()
    grads = [[param.grad for param in made.parameters()] for made in (plain, again)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_norms_and_rotations_stay_in_fp32_under_autocast():
    made, own = awake(generator()), condition()
    exact = made(own).flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normal = made.norm_out(torch.full((1, 16), 300.0))
        narrow = made(own).flatten()
    assert torch.equal(normal, made.norm_out(torch.full((1, 16), 300.0)))
    torch.testing.assert_close(narrow.float(), exact, rtol=0.1, atol=0.1)


def test_attention_is_factorised():
    """Without attention over layers and without that within one, tokens see only each other's row or column."""
    made = awake(generator())
    block = made.blocks[0]
    for part in (block.to_condition, block.over_tokens):
        nn.init.zeros_(part.output.weight)
        nn.init.zeros_(part.output.bias)
    own = condition()
    first = made.token_grid(own)
    with torch.no_grad():
        made.sheet_queries[-made.rank :] += 1.0  # the last sheet of every layer
    second = made.token_grid(own)
    assert torch.equal(first[:, :, :-1], second[:, :, :-1])
    assert (first[:, :, -1] != second[:, :, -1]).any()


def test_compiled_blocks_give_the_same():
    torch._dynamo.reset()
    made, own = awake(generator()), condition()
    with torch.no_grad():
        expected = made(own).flatten()
        made.blocks[0] = torch.compile(made.blocks[0], backend="eager")
        assert torch.equal(made(own).flatten(), expected)


def test_rotations_survive_the_meta_device_and_narrow_weights():
    made, own = awake(generator()), condition()
    with torch.device("meta"):
        empty = generator()
    empty.to_empty(device="cpu").load_state_dict(made.state_dict())
    assert torch.equal(empty(own).flatten(), made(own).flatten())
    tables = made.rotary_tables(5)
    assert all(torch.equal(a, b) for a, b in zip(made.bfloat16().rotary_tables(5), tables, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_conditions_may_have_another_type(dtype):
    made, own = awake(generator()), condition().to(dtype)
    assert torch.equal(made(own).flatten(), made(own.float()).flatten())


def test_for_backbone_finds_layers():
    made = WeightGenerator.for_backbone(backbone(), ["fc1", "fc2"], COND, rank=2, alpha=8.0, dim=16, head_dim=8)
    assert (made.names, made.scale) == (generator().names, 4.0)


def test_state_and_copies():
    made, own = awake(generator()), condition()
    twin = generator(seed=3)
    twin.load_state_dict(made.state_dict())
    for other in (twin, copy.deepcopy(made)):
        assert torch.equal(other(own).flatten(), made(own).flatten())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulation": 3}, "accumulation is 3; allowed is a divisor of rank 4 and of dim 16"),
        ({"head_dim": 12}, "head_dim is 12"),
        ({"head_dim": 2, "dim": 16}, "a multiple of 4"),
        ({"depth": 0}, "depth is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"prefix": ""}, "prefix is empty with 2 layers"),
        ({"rank": 2.5}, "rank is 2.5"),
    ],
    ids=str,
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        generator(**change)


@pytest.mark.parametrize(
    ("own", "mask", "message"),
    [
        (torch.zeros(3, COND), None, r"condition has shape \(3, 3\); allowed is \(B, L, 3\)"),
        (torch.zeros(3, 2, COND + 1), None, "condition has shape"),
        (torch.zeros(3, 0, COND), None, "L from 1"),
        (torch.full((3, 2, COND), torch.nan), None, "condition has NaN"),
        (torch.zeros(3, 2, COND), torch.ones(3, 3, dtype=torch.bool), r"mask has shape \(3, 3\)"),
        (torch.zeros(3, 2, COND), torch.ones(3, 2), "torch.float32; allowed are truth values"),
        (torch.zeros(3, 2, COND), torch.tensor([[True, True]] * 2 + [[False, False]]), "without any token"),
    ],
    ids=range(7),
)
def test_bad_conditions(own, mask, message):
    with pytest.raises(ValueError, match=message):
        generator()(own, mask)
