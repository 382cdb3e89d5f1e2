"""Diffusion: limits and closed forms of the preconditioning, and the sampler on a known distribution."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.functional.edm import (
    edm_loss_weight,
    edm_scales,
    heun_sampler,
    noise_levels,
    sampling_levels,
)

positive = st.floats(1e-3, 1e3)


@given(sigma=positive, sigma_data=positive)
def test_inputs_and_targets_have_unit_variance(sigma, sigma_data):
    skip, out, factor, noise = (float(scale) for scale in edm_scales(torch.tensor(sigma).double(), sigma_data))
    assert math.isclose(factor**2 * (sigma**2 + sigma_data**2), 1.0, rel_tol=1e-5)
    # what is left for the network to say of data y with noise n: (y - skip (y + n)) / out
    target = (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2
    assert math.isclose(target, out**2, rel_tol=1e-4)
    assert math.isclose(float(edm_loss_weight(torch.tensor(sigma).double(), sigma_data)) * out**2, 1.0, rel_tol=1e-5)
    assert math.isclose(noise, math.log(sigma) / 4, rel_tol=1e-5, abs_tol=1e-7)


def test_limits():
    skip, out, factor, _ = edm_scales(torch.tensor([1e-6, 1e6]).double(), sigma_data=0.5)
    torch.testing.assert_close(skip, torch.tensor([1.0, 0.0]).double())  # clean data pass, noise doesn't
    torch.testing.assert_close(out, torch.tensor([0.0, 0.5]).double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(factor, torch.tensor([2.0, 0.0]).double(), rtol=1e-5, atol=1e-5)


def test_noise_levels_are_log_normal():
    levels = noise_levels(20000, generator=torch.Generator().manual_seed(0)).log()
    assert float(levels.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(levels.std()) == pytest.approx(1.2, abs=0.03)
    again = noise_levels(20000, generator=torch.Generator().manual_seed(0)).log()
    assert torch.equal(levels, again)


def test_levels_fall_evenly_in_their_root():
    levels = sampling_levels(5, sigma_min=0.01, sigma_max=2.0, rho=3.0)
    assert float(levels[0]) == pytest.approx(2.0)
    assert [float(level) for level in levels[-2:]] == pytest.approx([0.01, 0.0])
    steps = levels[:-1].pow(1 / 3).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))
    assert sampling_levels(1, sigma_max=3.0).tolist() == pytest.approx([3.0, 0.0])


def gaussian(mean, std):
    """The best denoiser of normal data."""

    def denoise(x, sigma):
        return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)

    return denoise


def test_error_falls_with_the_square_of_the_steps():
    mean, std, start = 0.7, 0.3, torch.tensor([-2.0, 0.5, 1.0]).double()
    # along the flow, distances from the mean shrink as the spread of noisy data
    exact = mean + (5.0 * start - mean) * std / math.hypot(std, 5.0)
    errors = []
    for steps in (20, 40, 80):
        levels = sampling_levels(steps, sigma_min=1e-4, sigma_max=5.0)
        found = heun_sampler(gaussian(mean, std), lambda: start, levels)
        errors.append(float((found - exact).abs().max()))
    assert errors[2] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("churn", [0.0, 10.0, 1000.0])
def test_samples_are_distributed_as_the_data(churn):
    generator = torch.Generator().manual_seed(0)
    levels = sampling_levels(40, sigma_max=20.0)
    samples = heun_sampler(gaussian(0.7, 0.3), lambda: torch.randn(20000, generator=generator), levels, churn)
    assert float(samples.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(samples.std()) == pytest.approx(0.3, abs=0.02)


def test_the_denoiser_is_asked_twice_a_step_at_raised_levels():
    asked, draws = [], []

    def draw():
        draws.append(1)
        return torch.ones(1)

    levels = sampling_levels(4, sigma_max=8.0)
    heun_sampler(lambda x, sigma: asked.append(sigma) or x, draw, levels, churn=1.0)
    expected = [float(level) for level in levels for _ in range(2)][:8]
    expected = [level * 1.25 if index % 2 else level for index, level in enumerate(expected)][1:]
    assert asked == pytest.approx(expected)
    assert len(draws) == 5


def test_bad_input():
    for call, message in (
        (lambda: edm_scales(torch.ones(1), 0.0), "sigma_data is 0"),
        (lambda: edm_loss_weight(torch.ones(1), -1.0), "sigma_data is -1"),
        (lambda: noise_levels(1, std=-1.0), "std is -1"),
        (lambda: noise_levels(1, mean=math.nan), "mean is nan"),
        (lambda: sampling_levels(0), "steps is 0"),
        (lambda: sampling_levels(2, sigma_min=2.0, sigma_max=1.0), "sigma_max is 1"),
        (lambda: sampling_levels(2, rho=0.0), "rho is 0"),
        (lambda: heun_sampler(None, None, torch.tensor([1.0, 0.0]), churn=-1.0), "churn is -1"),
        (lambda: heun_sampler(None, None, torch.tensor([0.0, 1.0])), "levels are"),
        (lambda: heun_sampler(None, None, torch.tensor([1.0, 0.5])), "levels are"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
