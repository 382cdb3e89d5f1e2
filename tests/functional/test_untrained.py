"""Fresh weights are told from trained ones."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_weights.functional.untrained import look_untrained

INITS = {
    "uniform": nn.init.kaiming_uniform_,
    "xavier": nn.init.xavier_normal_,
    "small normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "truncated": lambda weight: nn.init.trunc_normal_(weight, std=0.02),
    "orthogonal": nn.init.orthogonal_,
    "zeros": nn.init.zeros_,
}


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("shape", [(64, 64), (32, 200), (300, 16)])
def test_what_initialisers_draw_is_fresh(name, shape):
    for seed in range(5):
        torch.manual_seed(seed)
        weight = torch.empty(shape)
        INITS[name](weight)
        assert look_untrained([weight])


def test_what_was_trained_for_an_epoch_is_not():
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    weights = [layer.weight for layer in network if isinstance(layer, nn.Linear)]
    assert look_untrained(weights)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for rows in torch.arange(1797).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows].float() / 16), y[rows]).backward()
        optimizer.step()
    assert not look_untrained(weights)
    assert not look_untrained([torch.randn(64, 64), weights[1].detach()])


def test_small_matrices_say_nothing():
    assert not look_untrained([])
    assert not look_untrained([torch.randn(15, 500)])
    assert look_untrained([torch.randn(4, 4) * torch.arange(4.0), torch.randn(64, 64)])
