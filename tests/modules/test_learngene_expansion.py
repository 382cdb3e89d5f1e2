"""Networks of any depth that begin with a learngene's weights."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.functional.learngene_sws import stage_map
from lightning_weights.modules import CompactViT, expand, extract_learngene, share_stages

SHAPE = {"image_size": 4, "width": 8, "heads": 2, "mlp_ratio": 2.0, "num_classes": 3}
REPEATS = (2, 1, 2)


def auxiliary(**options):
    """Return a network whose tensors are all different from what networks begin with."""
    network = CompactViT(**{**SHAPE, **options}, depth=sum(REPEATS), repeats=list(REPEATS))
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return network


def images(size=4):
    return torch.randn(5, 1, size, size)


@pytest.mark.parametrize(
    "options", [{}, {"pool": "class"}, {"pool_first": True, "eps": 1e-6}, {"num_classes": None}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_own_map_gives_the_auxiliary_network_exactly(options, dtype):
    network, x = auxiliary(**options).to(dtype), images().to(dtype)
    learngene = extract_learngene(network)
    for descendant in (expand(learngene), expand(learngene, mapping=learngene.mapping)):
        assert len(descendant.blocks) == sum(REPEATS)
        assert torch.equal(descendant(x), network(x))


@settings(deadline=None, max_examples=15)
@given(mapping=st.lists(st.integers(0, 2), min_size=1, max_size=9).map(sorted))
def test_any_depth_is_the_blocks_in_the_order_of_the_map(mapping):
    network, x = auxiliary(), images()
    tokens = network.patch_embed(x).flatten(2).transpose(1, 2) + network.positions
    for stage in mapping:
        tokens = network.blocks[stage](tokens)
    descendant = expand(extract_learngene(network), mapping=mapping)
    assert torch.equal(descendant(x), network.head(network.norm(tokens).mean(1)))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 11])
def test_depths_have_the_published_kind_of_map(depth):
    learngene = extract_learngene(auxiliary())
    descendant = expand(learngene, depth)
    for block, stage in zip(descendant.blocks, stage_map(depth, 3), strict=True):
        assert torch.equal(block.mlp.fc1.weight, learngene.stages[stage]["mlp.fc1.weight"])


def test_copies_are_independent():
    network = auxiliary()
    learngene = extract_learngene(network)
    before = copy.deepcopy(learngene.stages)
    descendant = expand(learngene, 6)
    assert torch.equal(descendant.blocks[0].mlp.fc1.weight, descendant.blocks[1].mlp.fc1.weight)
    optimizer = torch.optim.SGD(descendant.parameters(), lr=0.1)
    F.cross_entropy(descendant(images()), torch.tensor([0, 1, 2, 0, 1])).backward()
    optimizer.step()
    for first in (0, 2, 4):
        assert not torch.equal(descendant.blocks[first].mlp.fc1.weight, descendant.blocks[first + 1].mlp.fc1.weight)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(before, learngene.stages, strict=True) for name in a)
    assert torch.equal(expand(learngene)(x := images()), network(x))


def test_building_draws_nothing():
    learngene, state = extract_learngene(auxiliary()), torch.get_rng_state()
    expand(learngene, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_for_other_classes_stays_as_it_is():
    network = auxiliary()
    learngene = extract_learngene(network)
    own = CompactViT(**{**SHAPE, "num_classes": 7}, depth=4)
    head = own.head.weight.clone()
    assert expand(learngene, copy_head=False, network=own) is own
    assert torch.equal(own.head.weight, head)
    assert torch.equal(own.norm.weight, network.norm.weight)
    fresh = expand(learngene, 4, copy_head=False)
    assert not torch.equal(fresh.head.weight, network.head.weight)
    assert torch.equal(fresh.positions, network.positions)
    with pytest.raises(ValueError, match=r"num_classes is 7 here and 3 there.*copy_head=False"):
        expand(learngene, network=own)


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_other_image_sizes_stretch_positions(pool):
    network = auxiliary(pool=pool)
    learngene = extract_learngene(network)
    large = CompactViT(**{**SHAPE, "image_size": 8}, pool=pool, depth=4)
    with pytest.raises(ValueError, match=r"image_size is 8 here and 4 there.*resize_positions=True"):
        expand(learngene, network=large)
    expand(learngene, network=large, resize_positions=True)
    front = int(pool == "class")
    grid = network.positions[:, front:].transpose(1, 2).reshape(1, 8, 2, 2)
    wanted = F.interpolate(grid, (4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(large.positions[:, front:], wanted)
    assert torch.equal(large.positions[:, :front], network.positions[:, :front])
    assert large(images(8)).shape == (5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, "heads is 4 here and 2 there"),
        ({"width": 16}, "width is 16 here and 8 there"),
        ({"mlp_ratio": 4.0}, "mlp_ratio is 4.0 here and 2.0 there"),
        ({"eps": 1e-6}, "eps is 1e-06 here and 1e-05 there"),
        ({"pool_first": True}, "pool_first is True here and False there"),
        ({"pool": "class"}, "pool is 'class' here and 'mean' there"),
        ({"in_channels": 2}, "in_channels is 2 here and 1 there"),
    ],
)
def test_networks_that_compute_something_else_are_refused(options, message):
    learngene, network = extract_learngene(auxiliary()), CompactViT(**{**SHAPE, **options}, depth=4)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        expand(learngene, network=network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Network(nn.Module):
    """A network that nobody but its owner can build."""

    def __init__(self, depth, heads=2, activation="gelu", eps=1e-5, head=3, norm_first=True, batch_first=True):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        options = {"norm_first": norm_first, "batch_first": batch_first, "activation": activation}
        options["layer_norm_eps"] = eps
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, heads, 16, dropout=0.0, **options) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(8, eps=eps)
        self.head = nn.Linear(8, head)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def test_networks_of_ones_own():
    tied = share_stages(Network(depth=4), "layers", (2, 2))
    learngene, x = extract_learngene(tied), torch.randn(2, 5, 4)
    torch.testing.assert_close(expand(learngene, network=Network(depth=4))(x), tied(x))
    with pytest.raises(ValueError, match="does not say how to build a network"):
        expand(learngene, 4)
    with pytest.raises(ValueError, match="depth is 3, and the network has 4 layers in layers"):
        expand(learngene, 3, network=Network(depth=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 4}, r"layers.0: self_attn.num_heads is 4 here and 2 there"),
        ({"activation": "relu"}, r"learngene\): layers.0: activation is 'relu' here and 'gelu' there$"),
        (
            {"activation": partial(F.gelu, approximate="tanh")},
            r"activation is \"gelu\(\){'approximate': 'tanh'}\" here",
        ),
        ({"norm_first": False}, r"layers.0: norm_first is False here and True there"),
        ({"batch_first": False}, r"layers.0: self_attn.batch_first is False here and True there"),
        ({"eps": 1e-6}, r"layers.0: norm1.eps is 1e-06 here and 1e-05 there.*norm.eps is 1e-06"),
        ({"head": 5}, r"head.weight has shape \(5, 8\) here and \(3, 8\) there, which copy_head=False leaves out"),
    ],
)
def test_facts_of_ones_own_networks_are_compared(options, message):
    learngene = extract_learngene(share_stages(Network(depth=4), "layers", (2, 2)))
    with pytest.raises(ValueError, match=message):
        expand(learngene, network=Network(depth=2, **options))


def test_without_the_head_it_may_be_built_in_any_way():
    tied = share_stages(Network(depth=4), "layers", (2, 2))
    network = Network(depth=3)
    network.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 7))
    before = copy.deepcopy(network.head.state_dict())
    expand(extract_learngene(tied), copy_head=False, network=network)
    assert torch.equal(network.norm.weight, tied.norm.weight)
    assert all(torch.equal(before[name], value) for name, value in network.head.state_dict().items())
    with pytest.raises(ValueError, match=r"head.1 is 'ReLU\(\)' here and missing there"):
        expand(extract_learngene(tied), network=network)


def test_missing_and_unexpected_tensors_are_listed():
    learngene = extract_learngene(share_stages(Network(depth=4), "layers", (2, 2)))
    network = Network(depth=2)
    network.extra, network.norm = nn.Linear(2, 2), nn.Identity()
    with pytest.raises(ValueError, match=r"extra.weight is in the network and not in the learngene") as error:
        expand(learngene, network=network)
    assert "norm.weight is in the learngene and not in the network" in str(error.value)
    with torch.device("meta"):
        network = Network(depth=2)
    with pytest.raises(ValueError, match=r"stem.weight has no values yet"):
        expand(learngene, network=network)


def test_transformers_are_built_with_another_depth(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 4}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    model = share_stages(transformers.ViTForImageClassification(config), "vit.layers", (3, 1))
    learngene, x = extract_learngene(model), torch.randn(2, 1, 8, 8)
    learngene.save(tmp_path / "gene")
    learngene = type(learngene).load(tmp_path / "gene")
    assert learngene.head == "classifier"
    assert torch.equal(expand(learngene).eval()(x).logits, model.eval()(x).logits)
    longer = expand(learngene, depth=7)
    assert len(longer.vit.layers) == longer.config.num_hidden_layers == 7
    config.num_attention_heads = 4
    with pytest.raises(ValueError, match="num_attention_heads is 4 here and 2 there"):
        expand(learngene, network=transformers.ViTForImageClassification(config))


def test_decoders_with_other_heads_or_rotations_are_refused():
    """Shapes are the same, and heads are no attribute of these blocks; their configuration lists kinds of layers."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 20}

    def model(heads=2, theta=10000.0):
        rope = {"rope_type": "default", "rope_theta": theta}
        heads = {"num_attention_heads": heads, "num_key_value_heads": heads}
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads, rope_parameters=rope))

    learngene = extract_learngene(model(), "model.layers")
    assert learngene.head == "lm_head"
    assert len(expand(learngene, 3).model.layers) == 3
    with pytest.raises(ValueError, match=r"self_attn.head_dim is 2 here and 4 there"):
        expand(learngene, network=model(heads=4))
    with pytest.raises(ValueError, match=r"rope_parameters is .*500.* here and .*10000.* there"):
        expand(learngene, network=model(theta=500.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": 3, "mapping": [0, 1]}, "mapping has 2 entries for 3 layers"),
        ({"mapping": [0, 3]}, r"mapping\[1\] is 3; allowed is a whole number in \[0, 3\)"),
        ({"mapping": [-1, 0]}, r"mapping\[0\] is -1"),
        ({"mapping": []}, "mapping is empty"),
    ],
)
def test_bad_maps(arguments, message):
    with pytest.raises(ValueError, match=message):
        expand(extract_learngene(auxiliary()), **arguments)


def test_a_map_that_goes_back_warns():
    with pytest.warns(LightningWeightsWarning, match=r"mapping is \[2, 1, 0\], which goes back"):
        expand(extract_learngene(auxiliary()), mapping=[2, 1, 0])


def test_networks_with_shared_layers_are_no_descendants():
    learngene = extract_learngene(auxiliary())
    with pytest.raises(ValueError, match=r"share blocks, \[2, 1, 2\] of them"):
        expand(learngene, network=auxiliary())
    with pytest.raises(ValueError, match="layers is 'blocks'"):
        expand(learngene, network=nn.Linear(2, 2))
