"""The quantizer with a learned step, its calibration, and the one between two shifts."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_weights.functional.ofq import lsq, lsq_step
from lightning_weights.modules import InputQuantizer, LSQQuantizer, calibrating

DIMENSIONS = {"tensor": None, "token": -2, "channel": -1, "row": 0}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("granularity", DIMENSIONS)
def test_steps_come_from_the_first_values_and_stay(granularity, signed):
    first, second, dim = torch.randn(3, 4, 5), torch.randn(3, 4, 5) * 3, DIMENSIONS[granularity]
    quantizer = LSQQuantizer(3, signed, granularity)
    step = quantizer.step
    assert not quantizer.calibrated
    for x in (first, second):
        assert torch.equal(quantizer(x), lsq(x, lsq_step(first, 3, signed, dim), 3, signed, dim))
    assert quantizer.step is step
    assert quantizer.codes(second).dtype == (torch.int8 if signed else torch.uint8)


def test_an_optimizer_made_before_calibration_trains_the_step():
    quantizer = LSQQuantizer(granularity="tensor")
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    before = quantizer(x := torch.randn(8)).detach()
    quantizer(x).sum().backward()
    optimizer.step()
    assert not torch.equal(quantizer(x), before)


def test_calibration_takes_the_mean_over_batches_and_starts_anew():
    network = nn.Sequential(LSQQuantizer(granularity="tensor"), nn.ReLU())
    network(torch.randn(4))
    batches = [torch.randn(4) for _ in range(3)]
    with calibrating(network):
        for batch in batches:
            network(batch)
    torch.testing.assert_close(network[0].step.detach(), sum(lsq_step(x, 2) for x in batches) / 3)
    step = network[0].step.detach().clone()
    network(torch.randn(4))
    assert torch.equal(network[0].step, step)


def test_steps_calibrated_in_inference_mode_can_be_trained():
    quantizer = LSQQuantizer(granularity="tensor")
    with torch.inference_mode():
        quantizer(torch.randn(4))
    quantizer(torch.randn(4)).sum().backward()
    assert quantizer.step.grad is not None


def test_checkpoints_bring_the_number_of_steps():
    quantizer = LSQQuantizer()
    quantizer(torch.randn(2, 5, 8))
    for other in (LSQQuantizer(), copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        other.load_state_dict(quantizer.state_dict())
        assert torch.equal(other.step, quantizer.step)
    quantizer.load_state_dict(LSQQuantizer().state_dict())
    assert not quantizer.calibrated
    longer = LSQQuantizer()
    longer(torch.randn(2, 6, 8))
    with pytest.raises(RuntimeError, match="size mismatch"):
        longer.load_state_dict(other.state_dict())


def test_another_sequence_length_is_refused():
    quantizer = LSQQuantizer()
    quantizer(torch.randn(2, 5, 8))
    assert quantizer(torch.randn(7, 5, 8)).shape == (7, 5, 8)
    with pytest.raises(ValueError, match=r"5 steps, .* has 6 .*sequence length"):
        quantizer(torch.randn(2, 6, 8))
    with pytest.raises(ValueError, match="granularity 'tensor' or 'channel'"):
        LSQQuantizer()(torch.randn(2, 8))


def test_steps_stay_wide():
    quantizer = LSQQuantizer(granularity="tensor")
    quantizer(torch.randn(4))
    assert quantizer.bfloat16().step.dtype == torch.float32
    assert quantizer(torch.randn(4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert quantizer.double().step.dtype == torch.float64


def test_bad_input():
    with pytest.raises(ValueError, match="granularity is 'head'"):
        LSQQuantizer(granularity="head")
    with pytest.raises(ValueError, match="bits is 1"):
        LSQQuantizer(bits=1)
    with pytest.raises(ValueError, match="features is 0"):
        InputQuantizer(0)


@pytest.mark.parametrize("granularity", ["tensor", "token", "channel"])
def test_shifts_on_both_sides(granularity):
    quantizer, x = InputQuantizer(8, 2, True, granularity), torch.randn(2, 5, 8)
    nn.init.normal_(quantizer.before)
    nn.init.normal_(quantizer.after)
    step = lsq_step(x + quantizer.before, 2, dim=DIMENSIONS[granularity])
    want = lsq(x + quantizer.before, step, 2, dim=DIMENSIONS[granularity]) + quantizer.after
    assert torch.equal(quantizer(x), want)
    quantizer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in quantizer.parameters())
    quantizer.reset_parameters()
    assert not quantizer.quantizer.calibrated
    assert quantizer.before.eq(0).all()
