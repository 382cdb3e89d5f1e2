"""GLOW against the loss function of the authors' trainer, and the two paths that it doesn't take there."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.glow import weigh
from lightning_weights.modules import GLOWLoss
from tests.helpers.golden import load

GOLDEN = load("glow")
RULE = {name: float(GOLDEN[name]) for name in ("alpha", "beta", "min_weight", "max_weight")}
STEPS = len(GOLDEN["loss"])
PER_EPOCH = int(GOLDEN["steps_per_epoch"])


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name].copy())


def test_losses_weights_table_and_gradients():
    loss = GLOWLoss(num_samples=len(GOLDEN["labels"]), **RULE, fallback="batch_mean")
    ids, labels = tensor("sample_ids"), tensor("labels")
    for step in range(STEPS):
        batch = ids[step]
        before = loss.history[batch]
        np.testing.assert_allclose(before.numpy(), GOLDEN["previous_loss"][step], rtol=1e-5)
        logits = tensor("logits")[step].requires_grad_()
        losses = loss.per_sample_cross_entropy(logits, labels[batch])
        value = loss(losses, batch, epoch=step // PER_EPOCH)
        value.backward()
        np.testing.assert_allclose(losses.detach().numpy(), GOLDEN["per_sample_loss"][step], rtol=1e-5)
        np.testing.assert_allclose(loss.last.weights.numpy(), GOLDEN["weights"][step], atol=5e-5)
        np.testing.assert_allclose(value.item(), GOLDEN["loss"][step], rtol=1e-5)
        np.testing.assert_allclose(logits.grad.numpy(), GOLDEN["grad_logits"][step], atol=1e-6)
        np.testing.assert_allclose(loss.history[batch].numpy(), GOLDEN["per_sample_loss"][step], rtol=1e-5)
    assert step + 1 == int(GOLDEN["epochs"]) * PER_EPOCH


@pytest.mark.parametrize("step", range(STEPS))
def test_samples_without_history_are_compared_with_the_mean_of_the_batch(step):
    """The authors' fallback, computed here in float64, with every other sample of the batch forgotten."""
    now, before = GOLDEN["per_sample_loss"][step].astype(np.float64), GOLDEN["previous_loss"][step].astype(np.float64)
    before[::2] = np.nan
    compared = np.where(np.isnan(before), now.mean(), before)
    want = RULE["alpha"] * (1 - 1 / (1 + np.exp(-RULE["beta"] * (compared - now))))
    want = np.clip(want, RULE["min_weight"], RULE["max_weight"])
    found = weigh(torch.from_numpy(now), torch.from_numpy(before), **RULE, fallback="batch_mean")
    np.testing.assert_allclose(found.weights.numpy(), want, rtol=1e-12)
    assert not found.gains[found.seen.logical_not()].any()


def test_the_upper_clip_is_reached_by_a_larger_alpha():
    seen = ~np.isnan(GOLDEN["previous_loss"])
    now, before = GOLDEN["per_sample_loss"][seen].astype(np.float64), GOLDEN["previous_loss"][seen]
    rule = {**RULE, "alpha": 3 * RULE["max_weight"]}
    exact = rule["alpha"] / (1 + np.exp(rule["beta"] * (before - now)))
    found = weigh(torch.from_numpy(now), torch.from_numpy(before), **rule).weights.numpy()
    clipped = exact > RULE["max_weight"]
    assert clipped.any()
    assert (found[clipped] == RULE["max_weight"]).all()
    np.testing.assert_allclose(found, np.clip(exact, RULE["min_weight"], RULE["max_weight"]), rtol=1e-12)
