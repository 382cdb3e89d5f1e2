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


def test_layers_behind_a_gelu():
    assert behind_gelu(CompactViT(depth=2)) == {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu")
    assert behind_gelu(encoder) == {"linear2"}
    assert behind_gelu(torch.nn.TransformerEncoderLayer(8, 2, 16, activation="relu")) == set()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("patch_size", 3), ("heads", 5), ("width", 0), ("pool", "max"), ("mlp_ratio", 0.0), ("dropout", 1.0)],
)
def test_bad_input(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        CompactViT(**{argument: value})
