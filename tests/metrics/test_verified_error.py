"""VerifiedError against counting by hand, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy

from lightning_weights.metrics import VerifiedError


@given(st.lists(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 2.0]), min_size=3, max_size=3), min_size=1, max_size=9))
def test_counts_samples_with_a_negative_bound_in_any_batches(rows):
    expected = sum(any(value < 0 for value in row) for row in rows) / len(rows)
    error = VerifiedError()
    for row in rows:
        error.update(torch.tensor([row]))
    assert error.compute().item() == pytest.approx(expected)
    assert VerifiedError()(torch.tensor(rows)).item() == pytest.approx(expected)


def test_margins_of_points_give_the_ordinary_error():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(200, 5, generator=generator), torch.randint(5, (200,), generator=generator)
    others = torch.stack([torch.tensor([j for j in range(5) if j != label]) for label in y.tolist()])
    error = VerifiedError()
    error.update(logits.gather(1, y[:, None]) - logits.gather(1, others))
    accuracy = MulticlassAccuracy(num_classes=5, average="micro")(logits, y)
    assert error.compute().item() == pytest.approx(1 - accuracy.item(), abs=1e-6)


def test_nan_and_infinity_prove_only_what_they_say():
    error = VerifiedError()
    error.update(torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [-float("inf"), 1.0]]))
    assert error.compute().item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_certificate(dtype):
    error = VerifiedError()
    with pytest.raises(ValueError, match=r"margin_lb is in torch\.b?float16, whose rounding"):
        error.update(torch.ones(2, 3, dtype=dtype))
    assert error.total == 0


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"margin_lb has shape .*allowed is \(N, K-1\)"):
        VerifiedError().update(torch.ones(shape))


def test_nothing_counted_is_nan_and_reset_forgets():
    error = VerifiedError()
    error.update(-torch.ones(2, 1))
    error.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert error.compute().isnan()
