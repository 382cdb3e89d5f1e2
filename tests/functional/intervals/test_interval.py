"""Boxes, their ReLU and their sums, against the formulas with autograd."""

import pytest
import torch

from lightning_weights.functional.intervals import Interval, PreActivation
from lightning_weights.functional.intervals.interval import box_relu


def box(dtype=torch.float64, shape=(4, 3, 5)):
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return center, torch.rand(shape, generator=generator, dtype=dtype).requires_grad_()


def relu_by_ends(center, radius):
    lower, upper = (center - radius).relu(), (center + radius).relu()
    return (lower + upper) / 2, (upper - lower) / 2


def sums_by_masks(center, radius):
    active, inactive = center - radius > 0, center + radius < 0
    chosen = center[active], center[inactive]
    counts = [torch.tensor(float(len(part)), dtype=center.dtype) for part in chosen]
    totals = [*(part.sum() for part in chosen), center.sum(), *(part.square().sum() for part in chosen)]
    return torch.stack([radius.sum(), *counts, *totals])


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (lambda c, r: torch.stack(box_relu(c, r)), lambda c, r: torch.stack(relu_by_ends(c, r))),
        (lambda c, r: PreActivation(c, r).sums, sums_by_masks),
    ],
)
def test_values_and_gradients(actual, expected):
    results = []
    for function in (actual, expected):
        center, radius = box()
        value = function(center, radius)
        weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
        (value * weights).sum().backward()
        results.append((value, center.grad, radius.grad))
    torch.testing.assert_close(*results)


def test_relu_of_a_point_has_no_width():
    center = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e6
    middle, radius = box_relu(center, torch.zeros(1000))
    assert torch.equal(middle, center.relu())
    assert not radius.any()


def test_units_at_zero_are_in_neither_set():
    pre = PreActivation(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0]))
    assert pre.sums[1:5].tolist() == [0, 0, 0, 0]


def test_known_sums_are_kept():
    known = torch.arange(8.0)
    assert PreActivation(torch.zeros(1), torch.zeros(1), known).sums is known


def test_ends():
    interval = Interval.between(torch.tensor(0.0), torch.tensor(-1.0), torch.tensor(3.0))
    pre = PreActivation(interval.center, interval.radius)
    assert [interval.lower.item(), interval.upper.item()] == [pre.lower.item(), pre.upper.item()] == [-1.0, 3.0]
