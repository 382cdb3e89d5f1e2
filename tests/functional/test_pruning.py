"""Masks and scores against a full sort."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.pruning import (
    initial_scores,
    kept_count,
    largest_mask,
    straight_through_masked,
    top_k_mask,
    top_k_masks,
)

KEEPS = st.floats(1e-6, 1.0)
# few different values make many ties
TIED = st.lists(st.integers(-3, 3), min_size=1, max_size=60).map(lambda values: torch.tensor(values).float())


def sorted_mask(scores, keep):
    """By a stable sort: largest first, equal ones by ascending index."""
    order = np.argsort(-np.abs(scores.numpy()), kind="stable")
    mask = np.zeros(len(scores), dtype=bool)
    mask[order[: len(scores) - int((1 - keep) * len(scores))]] = True
    return mask


@settings(deadline=None)
@given(scores=TIED, keep=KEEPS)
def test_masks_are_exact_with_ties(scores, keep):
    mask = top_k_mask(scores, keep)
    assert mask.sum() == kept_count(len(scores), keep) >= 1
    np.testing.assert_array_equal(mask.numpy(), sorted_mask(scores, keep))


@settings(deadline=None)
@given(scores=TIED, keeps=st.tuples(KEEPS, KEEPS))
def test_masks_are_nested(scores, keeps):
    small, large = (top_k_mask(scores, keep) for keep in sorted(keeps))
    assert not (small & ~large).any()


@settings(deadline=None)
@given(scores=TIED, keep=KEEPS, exponent=st.integers(-20, 20))
def test_masks_do_not_depend_on_scale(scores, keep, exponent):
    assert torch.equal(top_k_mask(scores, keep), top_k_mask(-scores * 2.0**exponent, keep))


@settings(max_examples=30, deadline=None)
@given(scores=st.lists(TIED, min_size=1, max_size=4), keep=KEEPS)
def test_joint_masks_are_that_of_all_scores_together(scores, keep):
    masks = top_k_masks(scores, keep)
    assert torch.equal(torch.cat(masks), top_k_mask(torch.cat(scores), keep))
    for mask, score in zip(masks, scores, strict=True):
        # the counts alone are enough to make the masks again
        assert torch.equal(mask, largest_mask(score, int(mask.sum())))


@pytest.mark.parametrize("keep", [1e-5, 0.03, 0.5, 0.999])
@pytest.mark.parametrize(
    "change",
    [lambda x: x, lambda x: x.sort().values, lambda x: x.mul(4).round(), lambda x: x.view(-1, 128).abs().sort(1)[0]],
    ids=["random", "sorted", "ties", "misleading sample"],
)
def test_large_tensors(change, keep):
    # large enough for guesses from a sample, which the last case leads astray
    scores = change(torch.randn(128 * 1500)).flatten()
    np.testing.assert_array_equal(top_k_mask(scores, keep).numpy(), sorted_mask(scores, keep))


def test_layouts_and_dtypes():
    scores = torch.randn(6, 10)
    want = top_k_mask(scores, 0.3)
    assert torch.equal(top_k_mask(scores.t().contiguous().t(), 0.3), want)
    assert torch.equal(top_k_mask(scores.double(), 0.3), want)
    assert top_k_mask(scores.bfloat16(), 0.3).sum() == 18
    assert top_k_mask(scores, 1.0).all()
    assert not largest_mask(scores, 0).any()
    assert top_k_mask(torch.zeros(0, 3), 0.5).shape == (0, 3)


def test_start_from_scaled_weights():
    weight = torch.randn(5, 4, 3, 3)
    scores = initial_scores(weight)
    np.testing.assert_allclose(scores, math.sqrt(6 / 36) * weight / weight.abs().max(), rtol=1e-6)
    assert torch.equal(top_k_mask(scores, 0.1), top_k_mask(weight, 0.1))


def test_gradients_go_straight_through():
    weight, scores = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    mask, upstream = top_k_mask(scores, 0.5), torch.randn(4, 5)
    masked = straight_through_masked(weight, scores, mask)
    assert torch.equal(masked, weight * mask)
    masked.backward(upstream)
    assert torch.equal(weight.grad, upstream * mask)
    torch.testing.assert_close(scores.grad, scores.detach().sign() * upstream * weight.detach())


def test_masked_nan_and_infinity_are_zero():
    weight = torch.tensor([1.0, torch.nan, torch.inf])
    masked = straight_through_masked(weight, torch.ones(3), torch.tensor([True, False, False]))
    assert masked.tolist() == [1.0, 0.0, 0.0]


def test_function_transforms_and_compilation():
    weights, scores = torch.randn(3, 6), torch.randn(6)
    mask = top_k_mask(scores, 0.5)
    gradient = torch.func.grad(lambda s, w: straight_through_masked(w, s, mask).square().sum())
    batched = torch.func.vmap(gradient, in_dims=(None, 0))(scores, weights)
    torch.testing.assert_close(batched, 2 * weights.square() * mask * scores.sign())
    compiled = torch.compile(straight_through_masked, fullgraph=True, backend="aot_eager")
    s = scores.clone().requires_grad_()
    compiled(weights[0], s, mask).square().sum().backward()
    torch.testing.assert_close(s.grad, batched[0])


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan"), True])
def test_keep_out_of_range(keep):
    with pytest.raises(ValueError, match="keep is"):
        top_k_mask(torch.ones(4), keep)


def test_bad_input():
    with pytest.raises(ValueError, match="keeps none of 4 weights"):
        top_k_mask(torch.ones(4), 1e-20)
    with pytest.raises(ValueError, match="scores holds NaN"):
        top_k_mask(torch.tensor([1.0, torch.nan, 2.0, 3.0]), 0.5)
    with pytest.raises(ValueError, match="kept is 5"):
        largest_mask(torch.ones(4), 5)
    with pytest.raises(ValueError, match="all zero"):
        initial_scores(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="two dimensions or more"):
        initial_scores(torch.ones(2))
