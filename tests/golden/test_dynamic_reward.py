"""Dynamic reward weighting against the vectors of the authors' functions."""

import numpy as np
import pytest
import torch

from lightning_weights.functional.dynamic_reward import (
    ParetoArchive,
    influence,
    meta_reward,
    returns_to_go,
    token_advantages,
    update_log_weights,
)
from lightning_weights.kernels.gradient_gram import gradient_gram
from lightning_weights.kernels.policy_loss import kl_estimate, policy_loss
from tests.helpers.golden import load

GOLDEN = load("dynamic_reward")
ESTIMATORS = {"grpo": "adv_grpo", "grpo_nostd": "adv_grpo_nostd", "rloo": "adv_rloo", "reinforce++": "adv_rpp"}
SCALED = {name: f"scaled17_{key}" for name, key in ESTIMATORS.items() if f"scaled17_{key}" in GOLDEN}


def vector(name):
    return torch.tensor(GOLDEN[name])


def advantages(scores, estimator):
    group, mask, gamma = vector("ad_group"), vector("ad_mask"), float(GOLDEN["ad_gamma"])
    return token_advantages(scores, group, mask, estimator, gamma=gamma)


def test_archive_and_meta_reward():
    archive = ParetoArchive(GOLDEN["hv_ref"].tolist(), (GOLDEN["hv_maximize"] == 1).tolist())
    kept = ParetoArchive(GOLDEN["hv_ref"].tolist(), (GOLDEN["hv_maximize"] == 1).tolist(), prune=False)
    for place, point in enumerate(GOLDEN["hv_points"].tolist()):
        gain = archive.add(point)
        assert kept.add(point) == pytest.approx(gain, abs=1e-9)
        assert gain == pytest.approx(GOLDEN["hv_contribution"][place], abs=1e-9)
        assert meta_reward(gain) == pytest.approx(GOLDEN["hv_meta"][place], abs=1e-9)
        assert (gain > 0) == bool(GOLDEN["hv_appended"][place])
        assert archive.hypervolume() == pytest.approx(GOLDEN["hv_total"][place], abs=1e-9)
    assert len(kept.points) == GOLDEN["hv_appended"].sum()


def test_weights_follow_gradients():
    logs, total = vector("gr_w0").log(), torch.zeros(len(GOLDEN["gr_w0"]))
    accumulate = int(GOLDEN["gr_accumulate"])
    for step, gradients in enumerate(vector("gr_grads")):
        found = influence(gradient_gram([[row] for row in gradients])).float()
        np.testing.assert_allclose(found, GOLDEN["gr_influence"][step], rtol=1e-5, atol=1e-6)
        total += found
        if (step + 1) % accumulate == 0:
            eta = float(GOLDEN["gr_lr"][step] / GOLDEN["gr_mu"])
            logs, total = update_log_weights(logs, total / accumulate, eta), torch.zeros_like(total)
        np.testing.assert_allclose(logs.exp(), GOLDEN["gr_weights"][step], rtol=1e-5, atol=1e-6)


def test_scores_are_the_mixture():
    np.testing.assert_allclose(vector("ad_components") @ vector("ad_weights"), GOLDEN["ad_scores"], atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_advantages(estimator):
    found = advantages(vector("ad_scores"), estimator)
    np.testing.assert_allclose(found, GOLDEN[ESTIMATORS[estimator]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", SCALED)
def test_a_factor_on_all_rewards(estimator):
    found = advantages(1.7 * vector("ad_scores"), estimator)
    np.testing.assert_allclose(found, GOLDEN[SCALED[estimator]], rtol=1e-5, atol=1e-5)


def test_returns():
    found = returns_to_go(vector("ad_scores"), vector("ad_mask"), float(GOLDEN["ad_gamma"]))
    np.testing.assert_allclose(found, GOLDEN["ret_rpp"], rtol=1e-5, atol=1e-5)


def test_loss_and_divergences():
    logp, old, mask = vector("pl_logp"), vector("pl_old_logp"), vector("ad_mask")
    found = policy_loss(logp, old, vector("adv_grpo"), mask, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    assert float(found.loss) == pytest.approx(float(GOLDEN["pl_loss"]), abs=1e-6)
    assert float(found.clip_fraction) == pytest.approx(float(GOLDEN["pl_clipfrac"]), abs=1e-6)
    np.testing.assert_allclose(kl_estimate(logp, old, "k3"), GOLDEN["pl_low_var_kl"], atol=1e-6)
    np.testing.assert_allclose(kl_estimate(logp, old, "mse"), GOLDEN["pl_mse_kl"], atol=1e-6)
