"""Norms of growing networks against plain ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_weights.modules import MixtureBatchNorm1d, MixtureBatchNorm2d, set_mode


@pytest.mark.parametrize(
    ("kind", "sides"), [(MixtureBatchNorm1d, ()), (MixtureBatchNorm1d, (5,)), (MixtureBatchNorm2d, (5, 3))]
)
def test_norms_are_two_and_then_one_with_both_statistics(kind, sides):
    norm = kind(6, eps=1e-3, momentum=0.2)
    halves = [nn.BatchNorm1d(3, eps=1e-3, momentum=0.2) for _ in range(2)]
    x = torch.randn(2, 8, 3, *sides) * 3 + 1
    for member, half in enumerate(halves):
        set_mode(norm, f"member{member}")
        with torch.no_grad():
            norm.weights[member].copy_(half.weight.copy_(torch.randn(3)))
            norm.biases[member].copy_(half.bias.copy_(torch.randn(3)))
        torch.testing.assert_close(norm(x[member]), half(x[member].flatten(2) if sides else x[member]).view(x[0].shape))
    set_mode(norm, "grown")
    for name in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(norm.plain(), name), torch.cat([getattr(half, name) for half in halves]))
    assert torch.equal(norm.plain().num_batches_tracked, torch.tensor(2))
    whole, plain = torch.cat(list(x), 1), norm.plain()
    for training in (True, False):
        torch.testing.assert_close(norm.train(training)(whole), plain.train(training)(whole))
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_norms_without_weights_or_statistics():
    for options in ({"affine": False}, {"track_running_stats": False}):
        norm = MixtureBatchNorm1d(4, **options)
        x = torch.randn(8, 2)
        torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))
        set_mode(norm, "grown")
        assert norm.plain()(torch.randn(8, 4)).shape == (8, 4)
    with pytest.raises(ValueError, match="input of 4 dimensions"):
        norm(torch.zeros(1, 4, 1, 1))


def test_norms_keep_the_statistics_of_their_process():
    norm = MixtureBatchNorm1d(4)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))[0] is norm
