"""Certified training against the vectors of the authors' loss, regularisers and auto_LiRPA's bounds."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from lightning_weights.functional.ibp_warmup import (
    epsilon_at,
    input_box,
    layer_sums,
    relu_balance,
    robust_loss,
    tightness,
)
from lightning_weights.functional.intervals import crown_fused_loss, crown_margins, interval_forward
from tests.helpers.golden import load

GOLDEN = load("ibp_warmup")
MAX_EPS, LAMBDA, TOL = (float(GOLDEN[f"hp.{name}"]) for name in ("max_eps", "lambda0", "tol"))
SMALLEST_EPS = 1e-6  # where boxes are bounded for the regularisers while ε is 0
STEPS = len(GOLDEN["step_eps"])
BOUNDS = {"rtol": 1e-4, "atol": 1e-5}
GRADIENTS = {"rtol": 1e-3, "atol": 5e-4}


def tensor(name):
    return torch.tensor(GOLDEN[name])


def assert_golden(actual, name, **tolerance):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, GOLDEN[name], err_msg=name, **tolerance)


def state(prefix):
    return {name[len(prefix) :]: torch.tensor(value) for name, value in GOLDEN.items() if name.startswith(prefix)}


def entries(pattern):
    return sorted(name for name in GOLDEN if re.fullmatch(pattern, name))


def build(weights):
    """Make the Sequential that has these weights; strides follow from the sizes of the recorded activations."""
    last = max(int(name.split(".")[0]) for name in weights)
    shapes = [GOLDEN[f"step0.pre{i}.lower"].shape for i in range(len(entries(r"step0\.pre\d+\.lower")))]
    size, layers = GOLDEN["x"].shape[-1], []
    for i in range(last + 1):
        weight = weights.get(f"{i}.weight")
        if f"{i}.running_mean" in weights:
            layers.append((nn.BatchNorm2d if isinstance(layers[-1], nn.Conv2d) else nn.BatchNorm1d)(len(weight)))
        elif weight is None:
            following = weights.get(f"{i + 1}.weight")
            flatten = following is not None and following.ndim == 2 and isinstance(layers[-1], nn.ReLU)
            layers.append(nn.Flatten() if flatten else nn.ReLU())
        elif weight.ndim == 4:
            out = shapes[sum(isinstance(layer, nn.ReLU) for layer in layers)][-1]
            kernel = weight.shape[-1]
            geometry = {"stride": -(-size // out), "padding": kernel // 2, "bias": f"{i}.bias" in weights}
            layers.append(nn.Conv2d(weight.shape[1], weight.shape[0], kernel, **geometry))
            size = out
        else:
            layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=f"{i}.bias" in weights))
    net = nn.Sequential(*layers)
    net.load_state_dict(weights)
    return net


def box(x, eps):
    """The box in normalised units, in which the vectors hold x, its limits and the standard deviations."""
    reach = eps / tensor("std")[:, None, None]
    lower, upper = tensor("data_min")[:, None, None], tensor("data_max")[:, None, None]
    return torch.maximum(x - reach, lower), torch.minimum(x + reach, upper)


def bound(net, batch, eps):
    x, y = tensor("x")[batch], tensor("y")[batch]
    lower, upper = box(x, max(eps, SMALLEST_EPS))
    out = interval_forward(net, x, lower, upper, spec=y)
    sums = layer_sums(out.preactivations)
    return out, nn.functional.cross_entropy(out.clean, y), tightness(sums, (upper - lower).mean() / 2, TOL), sums


def trained():
    """Run the recorded steps; yield the network after each, with all that was found out in it."""
    net = build(state("net0."))
    optimizer = torch.optim.Adam(net.parameters(), lr=float(GOLDEN["hp.lr"]))
    for step, eps in enumerate(GOLDEN["step_eps"].tolist()):
        out, clean, tight, sums = bound(net, step, eps)
        robust, balance = robust_loss(out.margin_lower), relu_balance(sums, TOL)
        weighted = LAMBDA * (1 - eps / MAX_EPS) * (tight + balance)
        loss = (robust if eps > 0 else clean) + weighted
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
        norm = nn.utils.clip_grad_norm_(net.parameters(), float(GOLDEN["hp.clip"]))
        optimizer.step()
        error = (out.margin_lower < 0).any(1).float().mean()
        names = ("ce", "robust_loss", "L_tightness", "L_relu", "reg_weighted", "loss", "robust_err", "grad_norm")
        values = (clean, robust, tight, balance, weighted, loss, error, norm)
        yield step, net, out, dict(zip(names, values, strict=True)), gradients


def test_steps_of_training():
    for step, net, out, numbers, gradients in trained():
        for name, value in numbers.items():
            assert_golden(value, f"step{step}.{name}", **(BOUNDS if name != "grad_norm" else {"rtol": 1e-4}))
        for name in entries(rf"step{step}\.grad\..*"):
            assert_golden(gradients[name.partition(".grad.")[2]], name, **GRADIENTS)
        for name in entries(rf"step{step}\.pre\d+\.(lower|upper)"):
            index, end = re.fullmatch(r".*\.pre(\d+)\.(\w+)", name).groups()
            assert_golden(getattr(out.preactivations[int(index)], end), name, **BOUNDS)
        for name in entries(rf"after{step + 1}\..*"):
            assert_golden(net.state_dict()[name.partition(".")[2]], name, rtol=0, atol=2e-5)
    assert step == STEPS - 1


@pytest.fixture(scope="module")
def evaluated():
    net = [net for _, net, *_ in trained()][-1].eval()
    x, y = tensor("x")[0], tensor("y")[0]
    return net, x, *box(x, MAX_EPS), y


def test_evaluation_by_intervals(evaluated):
    out = interval_forward(*evaluated[:4], spec=evaluated[4])
    assert_golden(out.margin_lower, "eval.ibp_margin_lb", **BOUNDS)
    assert_golden(out.lower, "eval.ibp_logit_lb", **BOUNDS)
    assert_golden(out.upper, "eval.ibp_logit_ub", **BOUNDS)


def test_evaluation_by_crown(evaluated):
    out, margins = crown_margins(*evaluated)
    assert_golden(margins, "eval.crown_ibp_margin_lb", **BOUNDS)
    assert_golden(out.margin_lower, "eval.ibp_margin_lb", **BOUNDS)


def test_fused_losses(evaluated):
    out, losses = crown_fused_loss(*evaluated)
    assert_golden(losses, "eval.lf_crownibp_loss", **BOUNDS)
    assert_golden(crown_fused_loss(*evaluated, share=0.0)[1], "eval.lf_ibp_loss", **BOUNDS)
    assert_golden(nn.functional.cross_entropy(out.clean, evaluated[4], reduction="none"), "eval.lf_clean_ce", **BOUNDS)


def test_network_without_batch_norm():
    net = build({name: value for name, value in state("mlp.").items() if re.match(r"\d", name)})
    x, y, eps = tensor("mlp.x"), tensor("mlp.y"), float(GOLDEN["mlp.eps"])
    z, lower, upper = input_box(x, eps, clip_min=None, clip_max=None)
    out, crown = crown_margins(net, z, lower, upper, y)
    assert_golden(out.margin_lower, "mlp.margin_lb", **BOUNDS)
    assert_golden(crown, "mlp.crown_ibp_margin_lb", **BOUNDS)
    out = interval_forward(net, z, lower, upper, spec=y)
    assert_golden(out.margin_lower, "mlp.margin_lb", **BOUNDS)
    for i, pre in enumerate(out.preactivations):
        assert_golden(pre.lower, f"mlp.pre{i}.lower", **BOUNDS)
        assert_golden(pre.upper, f"mlp.pre{i}.upper", **BOUNDS)
    sums = layer_sums(out.preactivations)
    tight, balance = tightness(sums, (upper - lower).mean() / 2, TOL), relu_balance(sums, TOL)
    assert_golden(tight, "mlp.reg_unweighted_tightness", **BOUNDS)
    assert_golden(balance, "mlp.reg_unweighted_relu", **BOUNDS)
    weighted = LAMBDA * (1 - float(GOLDEN["mlp.reg_eps_used_for_decay"]) / MAX_EPS) * (tight + balance)
    assert_golden(weighted, "mlp.reg_weighted", **BOUNDS)
    robust = robust_loss(out.margin_lower)
    assert_golden(robust, "mlp.robust_loss", **BOUNDS)
    (robust + weighted).backward()
    for name, parameter in net.named_parameters():
        assert_golden(parameter.grad, f"mlp.grad.{name}", **GRADIENTS)


def test_box_of_raw_images_is_the_normalised_one():
    std, x = tensor("std"), tensor("x")[0]
    mean = -tensor("data_min") * std
    raw = (x * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
    z, lower, upper = input_box(raw, MAX_EPS, mean.tolist(), std.tolist())
    torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((lower, upper), box(x, MAX_EPS), rtol=1e-5, atol=1e-6)


def test_schedule():
    epoch = int(GOLDEN["hp.epoch_len"])
    schedule = {"start_epoch": int(GOLDEN["hp.sched_start"]), "ramp_epochs": int(GOLDEN["hp.sched_length"])}
    values = [epsilon_at(s, epoch, max_eps=MAX_EPS, **schedule) for s in range(len(GOLDEN["sched_eps"]))]
    assert_golden(np.array(values), "sched_eps", rtol=1e-12, atol=0)
