"""The small residual network, and the one that copies."""

import pytest
import torch

from lightning_weights.modules import ResidualMLP


def test_it_adds_what_its_blocks_find():
    network, x = ResidualMLP(3, 2, 5, depth=2), torch.randn(4, 3)
    hidden = network.embed(x)
    for block in network.blocks:
        hidden = hidden + block.fc2(torch.nn.functional.silu(block.fc1(block.norm(hidden))))
    assert torch.equal(network(x), network.head(hidden))
    assert torch.equal(network(x[:, :1], x[:, 1:]), network(x))


def test_copies_are_exact_though_the_blocks_compute():
    network = ResidualMLP(copies=True)
    image, told = torch.rand(5, 64), torch.rand(5, 8)
    torch.testing.assert_close(network(image, told), image, rtol=0, atol=2e-5)
    hidden = network.embed(torch.cat([image, told], 1))
    assert all((block(hidden) - hidden).abs().mean() > 0.05 for block in network.blocks)
    twin, other = ResidualMLP(copies=True), ResidualMLP(copies=True, seed=1)
    assert torch.equal(twin.embed.weight, network.embed.weight)
    assert not torch.equal(other.embed.weight, network.embed.weight)


def test_what_cannot_copy():
    with pytest.raises(ValueError, match="in_features is 8 with out_features 9 and width 20"):
        ResidualMLP(8, 9, 20, copies=True)
    with pytest.raises(ValueError, match="to copy, allowed are 4 to 7"):
        ResidualMLP(8, 4, 8, copies=True)
    with pytest.raises(ValueError, match="depth is 0"):
        ResidualMLP(depth=0)
