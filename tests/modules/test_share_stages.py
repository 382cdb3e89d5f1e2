"""Neighbouring layers with one and the same weights."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.errors import LightningWeightsWarning
from lightning_weights.modules import CompactViT, extract_learngene, share_stages

transformers = pytest.importorskip("transformers")
TINY = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 4}


def test_layers_of_a_stage_are_the_first_of_them():
    network, x = CompactViT(depth=5, width=8, heads=2), torch.randn(2, 64)
    first, last = network.blocks[0], network.blocks[3]
    before = sum(param.numel() for param in network.parameters())
    each = sum(param.numel() for param in first.parameters())
    shared = share_stages(network, "blocks", (3, 2))
    assert shared is network
    assert list(network.blocks) == [first] * 3 + [last] * 2
    assert sum(param.numel() for param in network.parameters()) == before - 3 * each
    assert sum(name.endswith("fc1.bias") for name in network.state_dict()) == 5
    assert torch.equal(network.blocks(network.positions), last(last(first(first(first(network.positions))))))
    assert network(x).shape == (2, 10)


def test_layers_of_a_stage_are_their_mean():
    network = CompactViT(depth=3, width=8, heads=2)
    before = copy.deepcopy(network.blocks)
    share_stages(network, "blocks", [2, 1], source="mean")
    for name, param in network.blocks[0].named_parameters():
        wanted = (before[0].get_parameter(name) + before[1].get_parameter(name)) / 2
        torch.testing.assert_close(param, wanted)
    assert torch.equal(network.blocks[2].mlp.fc1.weight, before[2].mlp.fc1.weight)


def test_stacks_with_stochastic_depth_keep_it():
    network = share_stages(CompactViT(depth=4, width=8, heads=2, drop_path=0.3), "blocks", (3, 1))
    assert network.blocks.repeats == [3, 1]
    assert network.blocks.drop_path == 0.3
    assert extract_learngene(network).repeats == [3, 1]


def models():
    vit = transformers.ViTConfig(**TINY, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    bert = transformers.BertConfig(**TINY, vocab_size=30, max_position_embeddings=16)
    words = torch.randint(30, (2, 7))
    return {
        "vit.layers": (transformers.ViTForImageClassification(vit), {"pixel_values": torch.randn(2, 1, 8, 8)}),
        "encoder.layer": (transformers.BertModel(bert), {"input_ids": words}),
    }


@pytest.mark.parametrize("layers", ["vit.layers", "encoder.layer"])
def test_encoders_of_transformers(layers):
    model, inputs = models()[layers]
    model.eval()
    apart = copy.deepcopy(model)
    share_stages(model, layers, (3, 1))
    stack = apart.get_submodule(layers)
    for layer in (1, 2):
        stack[layer].load_state_dict(stack[0].state_dict())
    outputs = [next(iter(network(**inputs).values())) for network in (model, apart)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    tied, others = model.get_submodule(layers), apart.get_submodule(layers)
    for name, param in tied[0].named_parameters():
        wanted = sum(others[layer].get_parameter(name).grad for layer in range(3))
        torch.testing.assert_close(param.grad, wanted, rtol=1e-4, atol=1e-6)
    assert extract_learngene(model).repeats == [3, 1]


def test_decoders_warn_of_their_cache():
    config = transformers.LlamaConfig(**TINY, vocab_size=30)
    model = transformers.LlamaForCausalLM(config)
    with pytest.warns(LightningWeightsWarning, match="use_cache=False"):
        share_stages(model, "model.layers", (2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blocks", (2, 2)), "which makes 4 layers, but there are 3"),
        (("blocks", (3, 0)), r"repeats\[1\] is 0"),
        (("layers", (2, 1)), "layers is 'layers'; allowed is the name of a ModuleList.*: blocks"),
        (("head", (2, 1)), "layers is 'head'"),
        (("blocks", (2, 1), "last"), "source is 'last'"),
    ],
)
def test_bad_input(arguments, message):
    network = CompactViT(depth=3, width=8, heads=2)
    with pytest.raises(ValueError, match=message):
        share_stages(network, *arguments)
    assert len(set(network.blocks)) == 3


def test_layers_that_share_already_or_differ_are_refused():
    network = share_stages(CompactViT(depth=3, width=8, heads=2), "blocks", (2, 1))
    with pytest.raises(ValueError, match=r"share blocks already, \[2, 1\]"):
        share_stages(network, "blocks", (2, 1))
    network = CompactViT(depth=2, width=8, heads=2)
    network.blocks[1].attention.num_heads = 4
    with pytest.raises(ValueError, match=r"attention.num_heads is 2 here and 4 there"):
        share_stages(network, "blocks", (2,))
    network = nn.Sequential(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)]))
    with pytest.raises(ValueError, match=r"weight is \(2, 2\) here and \(3, 2\) there"):
        share_stages(network, "0", (2,))
