"""GradNormLoRP against the vectors of the authors' optimizer, on peft's DoRA factors and on plain matrices."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weights.functional.gradnorm_lorp import effective_weight, weight_normed_linear
from lightning_weights.optimizers import GradNormLoRPAdamW
from tests.helpers.golden import load

GOLDEN = load("gradnorm_lorp")
PATH = [float(value) for value in GOLDEN["hyper_path"]]
MATRICES = [float(value) for value in GOLDEN["hyper_mat"]]
STEPS = max(int(match[1]) for name in GOLDEN if (match := re.fullmatch(r"loss_(\d+)", name)))
NAMES = sorted({match[1] for name in GOLDEN if (match := re.fullmatch(r"(G\d+)_0", name))})
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def vector(name):
    return torch.tensor(GOLDEN[name])


def assert_near(actual, name):
    np.testing.assert_allclose(actual.detach().numpy(), GOLDEN[name], **TOLERANCE, err_msg=name)


def optimizer_like_the_authors(params, rank, gap, scale, lr, beta1, beta2, eps, weight_decay):
    """After a refresh results follow the signs of LAPACK: they are as it gives them."""
    rule = {"rank": int(rank), "update_proj_gap": int(gap), "scale": scale}
    groups = [{"params": group, **(rule if projected else {})} for group, projected in params]
    return GradNormLoRPAdamW(
        groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, rank=None, sign_fix=False
    )


class Layer:
    """The layer of the vectors: a frozen weight and its factors."""

    def __init__(self):
        self.weight, self.bias = vector("W0"), vector("bias")
        self.scale = PATH[1] / PATH[0]
        self.magnitude, self.i, self.j = (nn.Parameter(vector(f"{name}_0")) for name in ("M", "I", "J"))

    def __call__(self, x, detach_norm=True):
        factors = (self.magnitude, self.i, self.j)
        return weight_normed_linear(x, self.weight, self.bias, *factors, self.scale, detach_norm)

    def loss(self):
        return 0.5 * (self(vector("X")) - vector("T")).square().mean()


def test_layer_at_the_start():
    layer = Layer()
    assert_near(layer.weight.norm(dim=1), "M_init")
    with torch.no_grad():
        layer.magnitude.copy_(vector("M_init"))
        layer.i.zero_()
    assert_near(layer(vector("X")), "y_init")


def test_layer_and_its_gradients():
    layer = Layer()
    assert_near(layer(vector("X")), "y_0")
    loss = layer.loss()
    assert_near(loss, "loss_0")
    loss.backward()
    for parameter, name in ((layer.j, "gJ_0"), (layer.i, "gI_0"), (layer.magnitude, "gM_0")):
        assert_near(parameter.grad, name)


def test_training_of_the_factors():
    layer = Layer()
    optimizer = optimizer_like_the_authors([([layer.j, layer.i], True), ([layer.magnitude], False)], *PATH[2:])
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        layer.loss().backward()
        optimizer.step()
        for parameter, name in ((layer.j, "J"), (layer.i, "I"), (layer.magnitude, "M")):
            assert_near(parameter, f"{name}_{step}")
        assert_near(layer.loss(), f"loss_{step}")
        for parameter, name in ((layer.j, "stateJ"), (layer.i, "stateI")):
            assert list(optimizer.state[parameter]["exp_avg"].shape) == GOLDEN[f"{name}_shape_{step}"].tolist()
    merged = effective_weight(layer.weight, layer.magnitude, layer.i, layer.j, layer.scale)
    assert_near(merged, "W_merged_final")


@pytest.mark.parametrize("name", NAMES)
def test_plain_matrices(name):
    param = nn.Parameter(vector(f"{name}_0"))
    optimizer = optimizer_like_the_authors([([param], True)], *MATRICES)
    for step in range(1, STEPS + 1):
        param.grad = vector(f"{name}_grad_{step}")
        optimizer.step()
        assert_near(param, f"{name}_galore_{step}")
