"""Weights from gains, the table's values, shifted labels and checksums."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.glow import (
    gain_weights,
    label_checksums,
    latest,
    linear_losses,
    next_token_losses,
    shifted,
    weigh,
)
from lightning_weights.kernels.weighted_cross_entropy import weighted_cross_entropy_reference

FINITE = st.floats(-20, 20)
POSITIVE = st.floats(0.1, 20)
LIMITS = {"min_weight": 0.5, "max_weight": 5.0}
LOOSE = {"min_weight": 0.0, "max_weight": 1e9}


@settings(max_examples=50, deadline=None)
@given(gains=st.lists(FINITE, min_size=2, max_size=8), alpha=POSITIVE, beta=st.floats(0, 30))
def test_weights_are_bounded_fall_with_gains_and_mirror(gains, alpha, beta):
    gains = torch.tensor(gains, dtype=torch.float64).sort().values
    weights = gain_weights(gains, alpha=alpha, beta=beta, **LIMITS)
    assert ((weights >= 0.5) & (weights <= 5.0)).all()
    assert (weights.diff() <= 0).all()
    free = [gain_weights(sign * gains, alpha=alpha, beta=beta, **LOOSE) for sign in (1, -1)]
    torch.testing.assert_close(free[0] + free[1], torch.full_like(gains, alpha))


@settings(max_examples=50, deadline=None)
@given(gain=FINITE, alpha=POSITIVE, beta=st.floats(0, 20))
def test_weights_are_the_formula(gain, alpha, beta):
    want = alpha * (1 - 1 / (1 + math.exp(-beta * gain)))
    weight = gain_weights(torch.tensor(gain, dtype=torch.float64), alpha=alpha, beta=beta, **LOOSE)
    assert weight.item() == pytest.approx(want, rel=1e-9, abs=1e-12 * alpha)


def test_without_beta_weights_are_half_of_alpha_exactly():
    gains = torch.randn(100)
    assert torch.equal(gain_weights(gains, alpha=2.0, beta=0.0), torch.ones(100))
    assert torch.equal(gain_weights(gains, min_weight=1.0, max_weight=1.0), torch.ones(100))
    assert torch.equal(gain_weights(torch.zeros(3), alpha=1.4), torch.full((3,), 0.7))


def test_a_batch_is_weighted_sample_by_sample():
    losses, previous = torch.rand(6), torch.rand(6)
    whole = weigh(losses, previous)
    order = torch.randperm(6)
    assert torch.equal(weigh(losses[order], previous[order]).weights, whole.weights[order])
    torch.testing.assert_close(whole.weights, gain_weights(previous - losses))
    assert whole.seen.all()
    assert torch.equal(whole.gains, previous - losses)


@pytest.mark.parametrize(("fallback", "weight"), [("neutral", 1.0), ("batch_mean", 2 / (1 + math.exp(10 * -1.0)))])
def test_samples_that_were_not_seen(fallback, weight):
    losses, previous = torch.tensor([1.0, 3.0]), torch.tensor([1.0, torch.nan])
    found = weigh(losses, previous, fallback=fallback)
    torch.testing.assert_close(found.weights, torch.tensor([1.0, weight]))
    assert found.seen.tolist() == [True, False]
    assert found.gains.tolist() == [0.0, 0.0]


def test_normalised_weights_have_mean_one():
    losses, previous = torch.rand(9), torch.rand(9)
    plain, normal = (weigh(losses, previous, normalize=normalize).weights for normalize in (False, True))
    torch.testing.assert_close(normal.mean(), torch.tensor(1.0))
    torch.testing.assert_close(normal, plain / plain.mean())
    vanishing = weigh(torch.zeros(2), torch.ones(2), beta=1e4, min_weight=0.0, normalize=True)
    assert torch.equal(vanishing.weights, torch.ones(2))


def test_weights_have_no_gradient_and_are_wide():
    losses = torch.rand(4, dtype=torch.bfloat16, requires_grad=True)
    found = weigh(losses, torch.rand(4))
    assert not found.weights.requires_grad
    assert found.weights.dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=8), data=st.data())
def test_the_last_finite_loss_of_a_sample_is_remembered(ids, data):
    values = st.sampled_from([0.5, 1.0, 2.0, math.nan, math.inf, -math.inf])
    losses = data.draw(st.lists(values, min_size=len(ids), max_size=len(ids)))
    table = torch.tensor([math.nan, 7.0, 8.0, 9.0])
    want = table.clone()
    for sample, loss in zip(ids, losses, strict=True):
        if math.isfinite(loss):
            want[sample] = loss
    index = torch.tensor(ids)
    found = latest(index, torch.tensor(losses), table[index])
    torch.testing.assert_close(found, want[index], equal_nan=True, rtol=0, atol=0)


def test_losses_are_those_of_cut_logits():
    logits, labels = torch.randn(3, 6, 9, dtype=torch.float64), torch.randint(9, (3, 6))
    labels[0, :4] = labels[1, 2] = -100
    want = weighted_cross_entropy_reference(logits[:, :-1], labels[:, 1:])
    torch.testing.assert_close(next_token_losses(logits, labels), want)
    hidden, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 6, 4), (9, 4), (9,)))
    want = weighted_cross_entropy_reference((hidden @ weight.t() + bias)[:, :-1], labels[:, 1:])
    torch.testing.assert_close(linear_losses(hidden, weight, labels, bias), want)


def test_packed_samples_are_as_alone():
    """The first token of a sample is predicted by nothing, neither alone nor behind another sample."""
    parts = [torch.randint(9, (length,)) for length in (3, 4, 2)]
    logits = [torch.randn(len(part), 9, dtype=torch.float64) for part in parts]
    alone = [next_token_losses(z[None], y[None])[0] for z, y in zip(logits, parts, strict=True)]
    segments = torch.tensor([[2, 2, 2, 0, 0, 0, 0, 1, 1, -1]])
    labels = torch.cat([*parts, torch.tensor([-100])])[None]
    packed = torch.cat([*logits, torch.zeros(1, 9)])[None]
    found = next_token_losses(packed, labels, segments=segments, num_samples=3)
    torch.testing.assert_close(found, torch.stack([alone[1], alone[2], alone[0]]))
    hidden = torch.randn(1, 10, 4, dtype=torch.float64)
    weight = torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(
        linear_losses(hidden, weight, labels, segments=segments, num_samples=3),
        next_token_losses(hidden @ weight.t(), labels, segments=segments, num_samples=3),
    )


def test_shifted_labels():
    assert shifted(torch.tensor([[5, 6, 7], [8, -1, 9]]), ignore_index=-1).tolist() == [[6, 7, -1], [-1, 9, -1]]
    assert shifted(torch.tensor([[5, 6, 7]]), segments=torch.tensor([[0, 0, 1]])).tolist() == [[6, -100, -100]]


def test_checksums_see_values_and_order_and_no_padding():
    labels = torch.tensor([[-100, 3, 4, -100], [3, -100, -100, 4], [4, 3, -100, -100], [3, 4, 0, -100]])
    first, second, *others = label_checksums(labels).tolist()
    assert first == second
    assert len({first, *others}) == 3
    assert label_checksums(torch.tensor([1, 2, 1])).unique().numel() == 2
    many = torch.randint(50_000, (2000, 12))
    assert label_checksums(many).unique().numel() == many.unique(dim=0).shape[0]
