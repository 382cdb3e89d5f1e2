"""Leaving out residual branches."""

import pytest
import torch

from lightning_weights.functional.stochastic_depth import drop_path, layer_probabilities


def test_samples_are_left_out_whole_and_the_mean_stays():
    x = torch.rand(4000, 2, 3) + 1.0
    kept = (drop_path(x, 0.25, training=True) / x).round(decimals=4)
    torch.testing.assert_close(kept, torch.where(kept > 0, 1.3333, 0.0))
    assert torch.equal(kept.amin((1, 2)), kept.amax((1, 2)))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_left_out_or_drawn(probability, training):
    x, state = torch.rand(3, 2), torch.get_rng_state()
    assert drop_path(x, probability, training) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_pass_where_the_branch_passed():
    x = torch.ones(64, 3, requires_grad=True)
    out = drop_path(x, 0.5, training=True)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_probabilities_grow_in_equal_steps():
    assert layer_probabilities(5, 0.2) == pytest.approx(torch.linspace(0, 0.2, 5).tolist())
    assert layer_probabilities(1, 0.2) == [0.0]
