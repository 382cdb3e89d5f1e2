"""Weight Aligning against vectors of a published reproduction."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_weights.functional.weight_align import (
    align_weights,
    class_mean,
    distillation_weight,
    herd,
    mean_norms,
    nearest_mean,
)
from lightning_weights.kernels.distillation_loss import distillation_loss, distillation_loss_reference
from tests.helpers.golden import load

GOLDEN = load("weight_align")
NUM_OLD, NUM_NEW = int(GOLDEN["n_old"]), int(GOLDEN["n_new"])
LOSSES = [distillation_loss, distillation_loss_reference]


def tensor(name):
    return torch.from_numpy(GOLDEN[name])


def assert_close(actual, name, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(actual), GOLDEN[name], rtol=0, atol=tolerance, err_msg=name)


def test_aligned_rows():
    weight = tensor("fc_weight")
    aligned, gamma = align_weights(weight, NUM_OLD)
    assert len(weight) == NUM_OLD + NUM_NEW
    assert_close(aligned, "aligned_weight")
    assert gamma == pytest.approx(float(GOLDEN["gamma"]), rel=1e-12)
    assert torch.equal(aligned[:NUM_OLD], weight[:NUM_OLD])
    old, new = mean_norms(weight, NUM_OLD)
    assert old / new == gamma


def test_aligning_twice_is_aligning_once():
    once, _ = align_weights(tensor("fc_weight"), NUM_OLD)
    twice, gamma = align_weights(once, NUM_OLD)
    assert_close(twice, "aligned_twice_weight")
    assert torch.equal(twice, once)
    assert gamma == 1.0


def test_a_bias_stays_as_it_is():
    weight, bias, features = tensor("fc_weight"), tensor("fc_bias"), tensor("features")
    before, after = F.linear(features, weight), F.linear(features, tensor("aligned_weight"), bias)
    before[:, NUM_OLD:] *= float(GOLDEN["gamma"])
    torch.testing.assert_close(after, before + bias, rtol=0, atol=1e-5)


def _weighted(loss, **change):
    arguments = {"weight": float(GOLDEN["lam"]), "temperature": float(GOLDEN["temperature"]), **change}
    return lambda logits: loss(logits, tensor("old_logits"), tensor("targets"), **arguments)


def test_weight_of_distillation():
    assert tensor("old_logits").shape[1] == NUM_OLD
    assert_close(distillation_weight(NUM_OLD, NUM_OLD + NUM_NEW), "lam", 1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_its_terms(loss):
    logits = tensor("new_logits")
    assert_close(_weighted(loss)(logits), "total_loss")
    assert_close(_weighted(loss, weight=1.0)(logits), "kd_loss")
    assert_close(_weighted(loss, weight=0.0)(logits), "ce_loss")


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_the_logits(loss):
    logits = tensor("new_logits").requires_grad_()
    assert_close(torch.autograd.grad(_weighted(loss)(logits), logits)[0], "grad_new_logits")


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_the_classifier(loss):
    """The weight that led to the logits is not among the vectors, nor needed: a change of it is taken at zero."""
    weight = torch.zeros_like(tensor("grad_fc_weight"), requires_grad=True)
    logits = tensor("new_logits") + F.linear(tensor("features"), weight)
    assert_close(torch.autograd.grad(_weighted(loss)(logits), weight)[0], "grad_fc_weight")


def test_herding():
    features = tensor("herd_features")
    chosen = herd(features, int(GOLDEN["herd_m"]))
    assert chosen.tolist() == GOLDEN["herd_indices"].tolist()
    mean = class_mean(features[chosen])
    assert_close(mean, "herd_class_mean")
    others = torch.stack([-mean, mean])
    assert (nearest_mean(features[chosen].mean(dim=0, keepdim=True), others) == 1).all()
