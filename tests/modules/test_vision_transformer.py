"""The small vision transformer."""

import pytest
import torch
import torch.nn.functional as F

from lightning_weights.modules import CompactViT, SelfAttention, TransformerBlock, behind_gelu


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_logits_features_and_flat_images(pool):
    network, x = (
        CompactViT(image_size=6, patch_size=3, in_channels=2, width=8, heads=2, pool=pool),
        torch.randn(4, 2, 6, 6),
    )
    assert network(x).shape == (4, 10)
    assert torch.equal(network(x), network(x.flatten(1)))
    assert network.positions.shape == (1, 4 + (pool == "class"), 8)
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert CompactViT(width=12, heads=3, num_classes=None)(torch.randn(4, 64)).shape == (4, 12)


def test_patches_do_not_mix_before_the_blocks_and_order_matters_only_by_position():
    network, x = CompactViT(image_size=4, patch_size=2, width=8, heads=2), torch.randn(1, 1, 4, 4)
    turned = torch.cat([x[..., 2:], x[..., :2]], dim=-1)
    assert not torch.allclose(network(x), network(turned))
    network.positions.data.zero_()
    torch.testing.assert_close(network(x), network(turned))


def test_attention_is_that_of_the_equation():
    attention, x = SelfAttention(8, 2), torch.randn(3, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = [
        F.softmax(q[..., part] @ k[..., part].mT / 2, dim=-1) @ v[..., part] for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)))


def test_dropout_is_for_training_alone():
    block, x = TransformerBlock(8, 2, 16, dropout=0.5), torch.randn(3, 5, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_the_last_normalisation_comes_before_or_after_the_pooling(pool):
    options, x = {"width": 8, "heads": 2, "pool": pool, "eps": 1e-2}, torch.randn(3, 64)
    first, last = CompactViT(**options), CompactViT(**options, pool_first=True)
    last.load_state_dict(first.state_dict())
    tokens = first.patch_embed(x.reshape(-1, 1, 8, 8)).flatten(2).transpose(1, 2)
    if pool == "class":
        tokens = torch.cat([first.class_token.expand(3, -1, -1), tokens], 1)
    tokens = first.blocks(tokens + first.positions)
    pooled = tokens[:, 0] if pool == "class" else tokens.mean(1)
    normalised = F.layer_norm(pooled, (8,), first.norm.weight, first.norm.bias, 1e-2)
    torch.testing.assert_close(last(x), first.head(normalised))
    assert torch.allclose(first(x), last(x), atol=1e-6) == (pool == "class")
    assert {part.eps for part in first.modules() if isinstance(part, torch.nn.LayerNorm)} == {1e-2}


def test_first_weights_of_a_chosen_size():
    network = CompactViT(width=64, depth=1, init_std=0.05)
    weight = network.blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert not network.head.bias.any()


def test_depth_and_repeats_go_together_and_dropping_needs_no_weights():
    shared = CompactViT(depth=5, repeats=[2, 1, 2], drop_path=0.2)
    assert [name for name, _ in shared.blocks.named_children()] == ["0", "1", "2"]
    assert shared.blocks.repeats == [2, 1, 2]
    plain, dropped = CompactViT(depth=2), CompactViT(depth=2, drop_path=0.2)
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    dropped.load_state_dict(plain.state_dict())
    x = torch.randn(16, 64)
    assert torch.equal(dropped.eval()(x), plain.eval()(x))
    assert not torch.equal(dropped.train()(x), plain.train()(x))
    assert shared.architecture == CompactViT(depth=9).architecture
    with pytest.raises(ValueError, match=r"repeats is \[2, 2\], which makes 4 layers, but there are 5"):
        CompactViT(depth=5, repeats=[2, 2])


def test_layers_behind_a_gelu():
    assert behind_gelu(CompactViT(depth=2)) == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu")
    assert behind_gelu(encoder) == {"linear2"}
    assert behind_gelu(torch.nn.TransformerEncoderLayer(8, 2, 16, activation="relu")) == set()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("patch_size", 3),
        ("heads", 5),
        ("width", 0),
        ("pool", "max"),
        ("mlp_ratio", 0.0),
        ("dropout", 1.0),
        ("drop_path", 1.0),
        ("eps", 0.0),
        ("init_std", 0.0),
    ],
)
def test_bad_input(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        CompactViT(**{argument: value})
