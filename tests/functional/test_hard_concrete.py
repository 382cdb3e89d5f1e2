"""Hard-concrete gates against their distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.counter_noise import counter_noise
from lightning_weights.functional.hard_concrete import (
    LOG_ALPHA_BOUND,
    hard_concrete_closed_probability,
    hard_concrete_gate,
    hard_concrete_keep_probability,
    hard_concrete_sample,
)

LOG_ALPHAS = st.floats(-20, 20)


@settings(deadline=None)
@given(log_alpha=LOG_ALPHAS, noise=st.floats(1e-6, 1 - 1e-6), temperature=st.floats(0.1, 3))
def test_samples_are_the_equation(log_alpha, noise, temperature):
    got = hard_concrete_sample(*torch.tensor([log_alpha, noise], dtype=torch.float64), temperature)
    logit = (math.log(noise) - math.log(1 - noise) + log_alpha) / temperature
    stretched = 1.2 / (1 + math.exp(-logit)) - 0.1
    assert got.item() == pytest.approx(min(1.0, max(0.0, stretched)), abs=1e-9)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 0.85, 3.0])
@pytest.mark.parametrize("temperature", [2 / 3, 0.3])
def test_gates_are_closed_as_often_as_predicted(log_alpha, temperature):
    noise = torch.rand(100_000, dtype=torch.float64)
    sampled = hard_concrete_sample(torch.full_like(noise, log_alpha), noise, temperature)
    predicted = hard_concrete_closed_probability(torch.tensor(log_alpha), temperature)
    assert (sampled == 0).double().mean().item() == pytest.approx(predicted.item(), abs=5e-3)
    assert predicted + hard_concrete_keep_probability(torch.tensor(log_alpha), temperature) == 1


@settings(deadline=None)
@given(low=LOG_ALPHAS, step=st.floats(0, 5))
def test_evaluation_is_monotone_and_a_probability(low, step):
    first, second = (hard_concrete_gate(torch.tensor(value)) for value in (low, low + step))
    assert 0 <= first <= second <= 1


def test_ends():
    far = torch.tensor([-30.0, 30.0])
    assert hard_concrete_gate(far).tolist() == [0.0, 1.0]
    assert hard_concrete_sample(far, torch.full((2,), 0.5)).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(hard_concrete_closed_probability(far), [1 - 1e-6, 1e-6], rtol=1e-6)
    assert pytest.approx(math.log(100)) == LOG_ALPHA_BOUND


def test_gradient_of_samples():
    noise = 0.3 + 0.4 * torch.rand(5, dtype=torch.float64)
    log_alpha = torch.randn(5, dtype=torch.float64).mul(0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hard_concrete_sample(x, noise), log_alpha)


def test_counter_noise_is_uniform_and_independent():
    seed = torch.tensor(11)
    draws = torch.stack([counter_noise(seed, torch.tensor(i), 200) for i in range(500)]).double()
    counts = torch.histc(draws, bins=100, min=0, max=1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom
    assert draws.min() >= 0
    assert draws.max() <= 1
    centred = draws - 0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.numel())
    other = counter_noise(torch.tensor(12), torch.tensor(0), 100_000).double() - 0.5
    here = counter_noise(seed, torch.tensor(0), 100_000).double() - 0.5
    assert abs((other * here).mean() * 12) < 5 / math.sqrt(100_000)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), draw=st.integers(0, 2**40))
def test_counter_noise_is_a_function(seed, draw):
    arguments = (torch.tensor(seed), torch.tensor(draw))
    first, longer = counter_noise(*arguments, 7), counter_noise(*arguments, 20)
    assert torch.equal(first, longer[:7])
    assert len(set(longer.tolist())) == 20
