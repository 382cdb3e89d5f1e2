"""Shapes and parameters of the pooled network for signals."""

import pytest
import torch
from torch import nn

from lightning_weights.modules import PooledConvNet1d


def test_lengths_are_halved_by_every_second_convolution_and_do_not_matter():
    network = PooledConvNet1d(in_channels=2, width=6, layers=4, num_classes=3)
    assert network.body(torch.zeros(1, 2, 40)).shape == (1, 6, 10)
    assert network(torch.zeros(1, 2, 13)).shape == (1, 3)
    convolutions = [part for part in network.modules() if isinstance(part, nn.Conv1d)]
    assert [part.stride[0] for part in convolutions] == [1, 1, 2, 1, 2]
    names = [name for name, _ in network.named_parameters() if name.endswith("bias")]
    assert len(names) == 5  # of norms


def test_bad_input():
    with pytest.raises(ValueError, match="width is 0"):
        PooledConvNet1d(width=0)
