"""The statistics-based quantizer as a module."""

import copy

import pytest
import torch

from lightning_weights.functional.ofq import start_oscillation, statsq, update_oscillation
from lightning_weights.modules import StatsQuantizer


def test_values_codes_and_gradient():
    weight, quantizer = torch.randn(4, 9).requires_grad_(), StatsQuantizer(bits=3)
    values = quantizer(weight)
    values.backward(upstream := torch.randn(4, 9))
    assert torch.equal(values, statsq(weight, 3))
    assert torch.equal(quantizer.coded(weight).dequantize(), values)
    assert quantizer.codes(weight).dtype == torch.int8
    assert torch.equal(weight.grad, upstream)
    assert quantizer.state_dict() == {}
    assert list(quantizer.parameters()) == []


@pytest.mark.parametrize("dim", [0, 1])
def test_tracking_is_that_of_the_codes(dim):
    weight, quantizer = torch.randn(4, 6), StatsQuantizer(bits=2, dim=dim)
    fused, plain = (start_oscillation(quantizer.codes(weight)) for _ in range(2))
    for _ in range(4):
        weight = weight + 0.3 * torch.randn(4, 6)
        counts = quantizer.track(weight, fused, momentum=0.2, threshold=0.1)
        want = update_oscillation(quantizer.codes(weight), plain, momentum=0.2, threshold=0.1)
        assert [int(count) for count in counts] == [int(count) for count in want]
    assert all(torch.allclose(*pair) for pair in zip(fused, plain, strict=True))


def test_held_codes_stay_without_gradient_and_survive_checkpoints():
    weight, quantizer = torch.randn(4, 9).requires_grad_(), StatsQuantizer(bits=2)
    frozen, codes = torch.rand(4, 9) < 0.5, torch.full((4, 9), -2, dtype=torch.int8)
    quantizer.hold(frozen, codes)
    values = quantizer(weight)
    values.sum().backward()
    assert torch.equal(values.detach(), torch.where(frozen, quantizer.coded(weight).step[:, None] * -1.5, values))
    assert torch.equal(weight.grad, (~frozen).float())
    assert torch.equal(quantizer.coded(weight).dequantize(), values)
    for other in (StatsQuantizer(bits=2), copy.deepcopy(quantizer)):
        other.load_state_dict(quantizer.state_dict())
        assert torch.equal(other(weight), values)
        other.load_state_dict(StatsQuantizer(bits=2).state_dict())
        assert torch.equal(other(weight), statsq(weight, 2))
    state = start_oscillation(quantizer.codes(weight))
    assert int(quantizer.track(weight + 5, state).flips) <= int((~frozen).sum())
    quantizer.release()
    assert torch.equal(quantizer(weight), statsq(weight, 2))


def test_bad_input():
    for bits in (1, 9, 2.5, "2"):
        with pytest.raises(ValueError, match="bits is"):
            StatsQuantizer(bits=bits)
    with pytest.raises(ValueError, match=r"dim is 0\.5"):
        StatsQuantizer(dim=0.5)
    with pytest.raises(ValueError, match="frozen is"):
        StatsQuantizer().hold(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.int8))
