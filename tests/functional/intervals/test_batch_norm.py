"""Statistics of the clean pass, and what they become as an affine map."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_weights.functional.intervals.batch_norm import batch_norm_map, clean_statistics


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def activations(shape=(6, 3, 4, 4)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).add_(100).requires_grad_()


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 4), (2, 3, 2, 2, 2)])
def test_moments_are_those_of_var_mean(shape):
    results = []
    for way in (clean_statistics, lambda x: torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)[::-1]):
        x = activations(shape)
        mean, variance = way(x)
        (mean @ torch.arange(3.0, dtype=x.dtype) + variance.square().sum()).backward()
        results.append((mean, variance, x.grad))
    torch.testing.assert_close(*results)


def test_moments_can_be_differentiated_twice():
    x = activations((3, 2)).detach().sub(100).requires_grad_()
    assert torch.autograd.gradgradcheck(clean_statistics, x)


def test_moments_over_processes(one_process):
    x = activations()
    mean, variance = clean_statistics(x, across_processes=True)
    expected = clean_statistics(x)
    torch.testing.assert_close((mean, variance), expected)
    (gradient,) = torch.autograd.grad(variance.sum() + mean.sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(v.sum() for v in expected), x)[0])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_map_is_the_module(training, affine):
    norm = nn.BatchNorm2d(3, affine=affine, dtype=torch.float64).train(training)
    for tensor in [*norm.parameters(), norm.running_mean]:
        tensor.data.normal_()
    x = activations()
    clean, scale, shift = batch_norm_map(norm, x)
    torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], clean)
    assert norm.num_batches_tracked == training


def test_one_image_has_no_statistics():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm_map(nn.BatchNorm1d(3), torch.zeros(1, 3))
