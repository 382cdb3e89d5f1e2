"""Which tensors of a network are predicted."""

import pytest
import torch
from torch import nn

from lightning_weights.modules import CompactViT, kind_of_shape, weight_kinds


@pytest.mark.parametrize(
    ("shape", "paper", "shape3x3"),
    [
        ((8, 4, 3, 3), "conv", "conv"),
        ((8, 4, 1, 1), "conv", "fc"),
        ((8, 4, 7, 7), "conv", "fc"),
        ((8, 3, 3), "conv", "fc"),
        ((3, 3), "fc", "fc"),
        ((8,), "bias", "bias"),
        ((), None, None),
    ],
)
def test_shapes_decide(shape, paper, shape3x3):
    assert kind_of_shape(shape) == paper
    assert kind_of_shape(torch.Size(shape), "shape3x3") == shape3x3


def test_normalisation_layers_and_counters_are_left_alone():
    network = nn.ModuleDict(
        {
            "conv": nn.Conv1d(2, 4, 3, bias=False),
            "a": nn.BatchNorm1d(4),
            "b": nn.BatchNorm1d(4, affine=False),
            "c": nn.LayerNorm(4),
            "d": nn.GroupNorm(2, 4),
            "slope": nn.PReLU(4),
            "rnn": nn.GRU(2, 3),
            "fc": nn.Linear(4, 2),
        }
    )
    gru = {f"rnn.weight_{part}_l0": "fc" for part in ("ih", "hh")} | {
        f"rnn.bias_{part}_l0": "bias" for part in ("ih", "hh")
    }
    assert weight_kinds(network.state_dict()) == {"conv.weight": "conv", **gru, "fc.weight": "fc", "fc.bias": "bias"}


def test_names_of_transformers():
    kinds = weight_kinds(CompactViT(image_size=4, width=8, depth=1, heads=2, num_classes=3).state_dict())
    assert "positions" not in kinds
    assert not [name for name in kinds if "norm" in name]
    assert {"patch_embed.weight", "blocks.0.mlp.fc1.weight", "head.bias"} <= kinds.keys()


@pytest.mark.parametrize(
    ("name", "predicted"),
    [
        ("model.embed_tokens.weight", False),
        ("embeddings.word_embeddings.weight", False),
        ("embedding.weight", False),
        ("emb2.weight", False),
        ("transformer.wte.weight", False),
        ("pos_embed", False),
        ("encoder.pos_embedding", False),
        ("attn.relative_position_bias_table", False),
        ("cls_token", False),
        ("vit.class_token", False),
        ("ln_1.weight", False),
        ("layer1.0.bn2.weight", False),
        ("LayerNorm.weight", False),
        ("embeddings.patch_embeddings.projection.weight", True),
        ("patch_embed.proj.weight", True),
        ("member.weight", True),
        ("positive.weight", True),
        ("attention.in_proj_weight", True),
        ("normal_form.fc.weight", True),
        ("net._orig_mod.fc.weight", True),
        ("weight", True),
    ],
)
def test_names_that_are_left_alone(name, predicted):
    assert (name in weight_kinds({name: torch.ones(4, 2)})) == predicted


def test_vectors_need_to_be_biases():
    tensors = {
        "a.bias": torch.ones(2),
        "in_proj_bias": torch.ones(2),
        "gamma": torch.ones(2),
        "alpha": torch.tensor(1.0),
    }
    assert weight_kinds(tensors) == {"a.bias": "bias", "in_proj_bias": "bias"}


def test_tied_tensors_are_predicted_once_or_not_at_all():
    shared, other = torch.ones(4, 4), torch.ones(4, 4)
    assert weight_kinds({"a.weight": shared, "b.weight": shared, "c.weight": other}) == {
        "a.weight": "fc",
        "c.weight": "fc",
    }
    assert weight_kinds({"head.weight": shared, "embed.weight": shared, "c.weight": other}) == {"c.weight": "fc"}
    views = {"a.weight": shared, "b.weight": shared.T}
    assert weight_kinds(views).keys() == views.keys()


def test_networks_without_values_are_sorted_alike():
    layers = [nn.Linear(2, 2, device=device) for device in ("cpu", "meta") for _ in range(2)]
    real, empty = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])
    assert weight_kinds(empty.state_dict()) == weight_kinds(real.state_dict())
    assert len(weight_kinds(empty.state_dict())) == 4


def test_what_the_user_excludes():
    tensors = {"head.weight": torch.ones(2, 2), "norm.proj.weight": torch.ones(2, 2), "embed.weight": torch.ones(2, 2)}
    assert weight_kinds(tensors, exclude=["^head"]).keys() == {"norm.proj.weight", "embed.weight"}
    assert weight_kinds(tensors, exclude=()).keys() == tensors.keys()


def test_flat_shards_are_routed_by_the_whole_shape():
    shards = {
        "conv.weight": torch.ones(20),
        "norm.weight": torch.ones(3),
        "fc.weight": torch.ones(0),
        "fc.bias": torch.ones(2),
    }
    shapes = {"conv.weight": (4, 3, 3, 3), "norm.weight": (4,), "fc.weight": (4, 2)}
    assert weight_kinds(shards, shapes=shapes) == {"conv.weight": "conv", "fc.weight": "fc", "fc.bias": "bias"}
    assert weight_kinds(shards, "shape3x3", shapes=shapes)["conv.weight"] == "conv"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"route": "size"}, "route is 'size'; allowed are 'paper', 'shape3x3'"),
        ({"exclude": "head"}, "exclude is 'head'; allowed is a list of names"),
        ({"exclude": ["(head"]}, "exclude has '\\(head', which is no regular expression"),
        ({"shapes": {"b": (2, 2)}}, r"shapes has \['b'\], which no snapshot has"),
        ({"shapes": {"a": (1, 2)}}, r"shapes\['a'\] is \(1, 2\), too small for the 4 entries"),
    ],
)
def test_odd_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        weight_kinds({"a": torch.ones(2, 2)}, **options)
