"""TSCNC against the vectors of the authors' layers and losses."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_weights.functional.hard_concrete import (
    hard_concrete_closed_probability,
    hard_concrete_gate,
    hard_concrete_sample,
)
from lightning_weights.functional.pruning import initial_scores, straight_through_masked, top_k_mask
from lightning_weights.functional.tscnc import condition_penalty, tsc_penalty
from lightning_weights.kernels.transformed_l1 import transformed_l1
from lightning_weights.modules import HardConcreteGate, ScoreMask, TradesLoss, refresh_masks
from tests.helpers.golden import load

GOLDEN = load("tscnc")
HYPER = {name.removeprefix("hp."): float(value) for name, value in GOLDEN.items() if name.startswith("hp.")}
RELEASED_DROPRATE = 0.3  # the factor 1 / (1 - 0.3) is written into the released code
NUM_SAMPLES = int(HYPER["N"])
STEPS = GOLDEN["train.x"].shape[0]
STATES = sorted({int(m[1]) for name in GOLDEN if (m := re.match(r"train\.after(\d+)\.", name))})
MASK_KEEPS = sorted(float(name.removeprefix("subnet.mask_keep_")) for name in GOLDEN if "mask_keep_" in name)


class GoldenGate(HardConcreteGate):
    """A gate that draws from a list instead of its stream."""

    noise = ()

    def next_noise(self):
        return self.noise.pop(0)


class Net(nn.Module):
    """The network of the vectors, its parameters under their names there."""

    def __init__(self):
        super().__init__()
        first, second, head = (vector(f"net0.{name}") for name in ("conv0.weight", "conv1.weights", "fc.weight"))
        self.conv0 = nn.Conv2d(first.shape[1], first.shape[0], first.shape[2:], padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(first.shape[0])
        self.conv1 = nn.Conv2d(second.shape[1], second.shape[0], second.shape[2:], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(second.shape[0])
        self.fc = nn.Linear(*head.shape)
        self.gate = GoldenGate(second.shape[0], temperature=HYPER["temperature"])
        parametrize.register_parametrization(self.conv1.eval(), "weight", self.gate.eval())
        self.train()

    def forward(self, x):
        x = self.bn0(self.conv0(x)).relu()
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(x.mean(dim=(2, 3)))

    def golden_tensors(self):
        """Parameters and buffers under the vectors' names; the head is stored (in, out) there."""
        tensors = {
            "conv0.weight": self.conv0.weight,
            "conv1.weights": self.conv1.parametrizations.weight.original,
            "conv1.qz_loga": self.gate.log_alpha,
            "fc.weight": self.fc.weight.T,
            "fc.bias": self.fc.bias,
        }
        for name in ("bn0", "bn1"):
            norm = getattr(self, name)
            for part in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"{name}.{part}"] = getattr(norm, part)
        return tensors

    @torch.no_grad()
    def load_golden(self, prefix):
        for name, tensor in self.golden_tensors().items():
            tensor.copy_(vector(f"{prefix}.{name}"))

    def golden_gradients(self):
        head = self.fc.weight.grad.T
        tensors = {name: tensor for name, tensor in self.golden_tensors().items() if isinstance(tensor, nn.Parameter)}
        return {"fc.weight": head, **{name: tensor.grad for name, tensor in tensors.items()}}

    def tsc(self):
        original = self.conv1.parametrizations.weight.original
        return tsc_penalty(
            gated=[(original, self.gate.keep_probability())],
            plain=[self.conv0.weight, self.fc.weight, self.fc.bias],
            norms=[*self.bn0.parameters(), *self.bn1.parameters()],
            num_samples=NUM_SAMPLES,
            weight_decay=HYPER["wd"],
            l0=HYPER["lamba"],
            a=HYPER["a"],
            weight=HYPER["lambdda"],
            droprate=RELEASED_DROPRATE,
            released_sign=True,
        )

    def cnc(self):
        return condition_penalty(self.fc.weight, mode="released")


def vector(name):
    return torch.tensor(GOLDEN[name])


def assert_near(actual, name, rtol=1e-5, atol=1e-7):
    np.testing.assert_allclose(actual.detach().numpy(), GOLDEN[name], rtol=rtol, atol=atol, err_msg=name)


def assert_gradients(net, prefix):
    for name, gradient in net.golden_gradients().items():
        if f"{prefix}.{name}" in GOLDEN:
            assert_near(gradient, f"{prefix}.{name}", rtol=1e-4, atol=1e-6)


@pytest.fixture
def net():
    net = Net()
    net.load_golden("net0")
    return net


def test_gates(net):
    log_alpha = net.gate.log_alpha
    sampled = hard_concrete_sample(log_alpha, vector("gate.u"), HYPER["temperature"])
    assert_near(sampled, "gate.z_train")
    assert_near(hard_concrete_gate(log_alpha), "gate.z_eval")
    assert_near(hard_concrete_closed_probability(log_alpha, HYPER["temperature"]), "gate.p_zero_cdf0")
    (gradient,) = torch.autograd.grad((sampled * torch.arange(1, len(sampled) + 1)).sum(), log_alpha)
    assert_near(gradient, "gate.dz_dlog_alpha_weighted_by_1..n", rtol=1e-4, atol=1e-6)


def test_sparse_constraint(net):
    decay = NUM_SAMPLES * HYPER["wd"]
    plain = {
        "conv0": 0.5 * decay * net.conv0.weight.square().sum(),
        "fc": 0.5 * decay * (net.fc.weight.square().sum() + net.fc.bias.square().sum()),
    }
    for name, energy in plain.items():
        assert_near(-energy, f"reg.{name}.logp")
    gated = transformed_l1(
        net.conv1.parametrizations.weight.original,
        net.gate.keep_probability(),
        precision=decay / (1 - RELEASED_DROPRATE),
        l0=HYPER["lamba"],
        a=HYPER["a"],
        released=True,
    )
    assert_near(-gated.sum(), "reg.conv1.logp")
    penalty = net.tsc()
    assert_near(penalty, "reg.total_weighted")
    penalty.backward()
    assert_gradients(net, "reg.grad")


def test_condition_constraint(net):
    penalty = net.cnc()
    assert_near(penalty, "cnc.value")
    penalty.backward()
    assert_near(net.fc.weight.grad.T, "cnc.grad.fc.weight", rtol=1e-4, atol=1e-6)
    spread = vector("cnc2.W").requires_grad_()
    penalty = condition_penalty(spread, mode="released")
    assert_near(penalty, "cnc2.value")
    penalty.backward()
    assert_near(spread.grad, "cnc2.grad", rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keep", MASK_KEEPS)
def test_masks(keep):
    mask = top_k_mask(vector("subnet.scores"), keep)
    np.testing.assert_array_equal(mask.float().numpy(), GOLDEN[f"subnet.mask_keep_{keep:g}"])


def test_masks_learn_straight_through():
    # the layer of the vectors multiplies the mask by nothing: its upstream gradient is that of the mask itself
    scores = vector("subnet.scores").requires_grad_()
    weight = torch.ones_like(scores)
    masked = straight_through_masked(weight, scores, top_k_mask(scores, MASK_KEEPS[0]))
    masked.backward(vector("subnet.upstream"))
    assert_near(scores.grad, "subnet.grad_scores")


def test_training(net):
    """Follow the released loop, with its average that starts at the initial weights and is divided all the same."""
    trades = TradesLoss(
        epsilon=HYPER["epsilon"],
        step_size=HYPER["step_size"],
        steps=int(HYPER["attack_steps"]),
        beta=HYPER["trades_beta"],
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=HYPER["lr"], momentum=HYPER["momentum"], nesterov=True)
    average = {name: tensor.detach().clone() for name, tensor in net.golden_tensors().items()}
    decay = HYPER["beta_ema"]
    for step in range(STEPS):
        net.gate.noise = [*vector("train.gate_u")[step]]
        noise = vector("train.attack_init_noise")[step]
        losses = {
            "trades": trades(net, vector("train.x")[step], vector("train.y")[step], noise),
            "tsc": net.tsc(),
            "cnc": net.cnc(),
        }
        for name, loss in losses.items():
            assert_near(loss, f"train.step{step}.{name}", rtol=1e-4)
        assert net.gate.noise == []  # three draws: the attack took none
        optimizer.zero_grad()
        sum(losses.values()).backward()
        if step == 0:
            assert_gradients(net, "train.step0.grad")
        optimizer.step()
        net.gate.clamp()
        for name, tensor in net.golden_tensors().items():
            average[name].mul_(decay).add_(tensor.detach(), alpha=1 - decay)
        if step + 1 in STATES:
            assert_state(net, average, step + 1)


def assert_state(net, average, step):
    for name, tensor in net.golden_tensors().items():
        assert_near(tensor, f"train.after{step}.{name}", rtol=0, atol=1e-5 if step <= 2 else 1e-4)
        if f"train.ema_debiased_after{step}.{name}" in GOLDEN:
            debiased = average[name] / (1 - HYPER["beta_ema"] ** step)
            assert_near(debiased, f"train.ema_debiased_after{step}.{name}", rtol=1e-4, atol=1e-5)


def test_pruning(net):
    net.load_golden(f"train.after{STATES[-1]}")
    net.eval()
    originals = {"conv0": net.conv0.weight, "conv1": net.conv1.parametrizations.weight.original}
    for name, weight in originals.items():
        assert_near(initial_scores(weight), f"prune.scores0.{name}")
    # the released head is stored (in, out), so that its fan is the number of classes
    assert_near(initial_scores(net.fc.weight.T), "prune.scores0.fc")
    masks = {}
    for name, layer in (("conv0", net.conv0), ("conv1", net.conv1), ("fc", net.fc)):
        layer.requires_grad_(False)
        masks[name] = ScoreMask(originals.get(name, layer.weight), HYPER["keep"])
        scores = vector(f"prune.scores0.{name}")
        masks[name].scores.data = scores.T.contiguous() if name == "fc" else scores
        parametrize.register_parametrization(layer, "weight", masks[name])
    refresh_masks(list(masks.values()))
    logits = net(vector("train.x")[0])
    assert_near(logits, "prune.eval_logits", rtol=1e-4, atol=1e-5)
    nn.functional.cross_entropy(logits, vector("train.y")[0]).backward()
    for name, mask in masks.items():
        gradient = mask.scores.grad.T if name == "fc" else mask.scores.grad
        assert_near(gradient, f"prune.score_grad.{name}", rtol=1e-4, atol=1e-6)
