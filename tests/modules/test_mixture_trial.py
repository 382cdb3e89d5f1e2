"""Halves that are no networks of their own, which only a trial shows."""

import copy

import pytest
import torch
from torch import nn

from lightning_weights.modules import WideResNet, mixturize


class Ending(nn.Module):
    """A convolution, something, and a linear layer."""

    def __init__(self, between, features: int) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Conv1d(3, 8, 3, padding=1), between, nn.Linear(features, 4)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def gated(x):
    return (x * torch.sigmoid(x.mean(1, keepdim=True))).mean(-1)


@pytest.mark.parametrize(
    ("between", "features"), [(lambda x: x.transpose(1, 2).flatten(1), 8 * 9), (gated, 8)], ids=["places", "mean"]
)
def test_mixed_channels_are_found(between, features):
    plain = Ending(between, features)
    assert mixturize(plain)
    with pytest.raises(ValueError, match="what comes to last in the grown network is not what comes to its members"):
        mixturize(plain, input_shape=(3, 9))


def test_networks_that_pass_are_as_if_nothing_had_been_tried():
    plain = WideResNet(3, 8, 10, widen=1, pre_activation=True, pool=True, linear_size=None)
    torch.manual_seed(0)
    tried = mixturize(copy.deepcopy(plain), input_shape=[3, 8, 8], keep_bias=True)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    other = mixturize(plain, keep_bias=True)
    assert torch.equal(state, torch.get_rng_state())
    for (name, value), kept in zip(tried.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, kept), name
    assert tried.training
    assert not any(part._forward_hooks for part in tried.modules())
    assert mixturize(Ending(lambda x: x.flatten(1), 8 * 9), input_shape=(3, 9))
