"""Attacks against closed forms, and what they must not touch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_weights.functional.attacks import pgd_attack, trades_attack, trades_loss
from lightning_weights.functional.evaluation_mode import evaluation_mode

BOX = {"epsilon": 0.1, "step_size": 0.03, "steps": 5}


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )


def batch():
    return torch.rand(5, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1])


def attack(kind, net, x, y, **options):
    return trades_attack(net, x, **options) if kind == "trades" else pgd_attack(net, x, y, **options)


@pytest.mark.parametrize("kind", ["trades", "pgd"])
def test_stays_inside_the_box_and_moves(kind):
    x, y = batch()
    x[0] = 0.0
    x[1] = 1.0
    attacked = attack(kind, network(), x, y, **BOX)
    assert ((attacked >= x - 0.1) & (attacked <= x + 0.1)).all()
    assert ((attacked >= 0) & (attacked <= 1)).all()
    assert (attacked - x).abs().amax(dim=(1, 2, 3)).min() > 0.05
    assert not attacked.requires_grad


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0, 0.5),
    step=st.floats(1e-3, 1.0),
    steps=st.integers(0, 3),
    kind=st.sampled_from(["trades", "pgd"]),
)
def test_any_box(epsilon, step, steps, kind):
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), batch()
    attacked = attack(kind, net, x, y, epsilon=epsilon, step_size=step, steps=steps)
    assert (attacked - x).abs().max() <= epsilon + 1e-6
    assert ((attacked >= 0) & (attacked <= 1)).all()


@pytest.mark.parametrize("kind", ["trades", "pgd"])
def test_touches_nothing(kind):
    net, (x, y) = network(), batch()
    net[1].eval()  # a frozen normalisation, in a network that trains
    net(x).sum().backward()
    before = copy.deepcopy(net)
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    attack(kind, net, x, y, **BOX)
    assert [part.training for part in net.modules()] == [part.training for part in before.modules()]
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert x.grad is None
    assert not x.requires_grad


@pytest.mark.parametrize("kind", ["trades", "pgd"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(kind, mode):
    net, (x, y) = network(), batch()
    torch.manual_seed(1)
    want = attack(kind, net, x, y, **BOX)
    with mode():
        torch.manual_seed(1)
        got = attack(kind, net, x.clone(), y.clone(), **BOX)
    assert torch.equal(got, want)


def test_flags_come_back_after_an_error():
    net = network()
    with pytest.raises(RuntimeError), evaluation_mode(net):
        raise RuntimeError
    assert all(part.training for part in net.modules())


def test_linear_networks_are_attacked_optimally():
    # two classes: the worst input of the box is known, x - ε·sign of the difference of the rows
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    x, y = 0.3 + 0.4 * torch.rand(4, 6), torch.tensor([0, 1, 0, 1])
    away = (net[1].weight[1] - net[1].weight[0]).detach().sign() * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    attacked = pgd_attack(net, x, y, epsilon=0.1, step_size=0.05, steps=6)
    torch.testing.assert_close(attacked, x + 0.1 * away)


def test_divergence_rises():
    net, (x, _) = network().eval(), batch()

    def divergence(other):
        return nn.functional.kl_div(
            net(other).log_softmax(1), net(x).log_softmax(1), log_target=True, reduction="sum"
        ).item()

    noise = torch.randn_like(x)
    start = (x + 1e-3 * noise).clamp(0, 1)
    assert divergence(trades_attack(net, x, noise=noise, **BOX)) > 10 * divergence(start)


def test_noise_and_generators_are_taken():
    net, (x, y) = network(), batch()
    noise = torch.rand(2, *x.shape) * 2 - 1
    one, two = (pgd_attack(net, x, y, **BOX, restarts=2, noise=noise) for _ in range(2))
    assert torch.equal(one, two)
    state = torch.get_rng_state()
    one, two = (pgd_attack(net, x, y, **BOX, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_restarts_go_on_with_what_is_still_right():
    class Counting(nn.Sequential):
        sizes = ()

        def forward(self, x):
            self.sizes = (*self.sizes, len(x))
            return super().forward(x)

    # without steps an attempt is its random start, here one that fools the network for the first input only
    net = Counting(nn.Flatten(), nn.Linear(1, 2, bias=False))
    net[1].weight.data = torch.tensor([[0.0], [1.0]])
    x, y = torch.full((2, 1), 0.05), torch.tensor([1, 1])
    noise = torch.tensor([[[-1.0], [1.0]], [[1.0], [0.5]], [[1.0], [-1.0]]])
    attacked = pgd_attack(net, x, y, epsilon=0.05, step_size=0.1, steps=0, restarts=3, noise=noise)
    assert net.sizes == (2, 1, 1)
    assert attacked.flatten().tolist() == [0.0, 0.0]


def test_bounds_per_channel_are_those_of_pixels():
    mean, std = torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3])
    inner, (x, y) = network().eval(), batch()

    class Normalised(nn.Module):
        def forward(self, x):
            return inner((x - mean[:, None, None]) / std[:, None, None])

    noise = torch.rand(1, *x.shape) * 2 - 1
    want = pgd_attack(Normalised(), x, y, **BOX, noise=noise)
    normal = (x - mean[:, None, None]) / std[:, None, None]
    bounds = {"clip_min": ((0 - mean) / std).tolist(), "clip_max": ((1 - mean) / std).tolist()}
    steps = {"epsilon": (0.1 / std).tolist(), "step_size": (0.03 / std).tolist(), "steps": 5}
    got = pgd_attack(inner, normal, y, **bounds, **steps, noise=noise)
    torch.testing.assert_close(got * std[:, None, None] + mean[:, None, None], want, atol=1e-5, rtol=1e-4)


def test_loss_is_cross_entropy_and_divergence():
    logits, adversarial, clean = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
    y = torch.tensor([0, 1, 2, 0])
    p, q = clean.softmax(1), adversarial.softmax(1)
    want = nn.functional.cross_entropy(logits, y) + 6.0 / 4 * (p * (p / q).log()).sum()
    torch.testing.assert_close(trades_loss(logits, adversarial, clean, y), want)
    torch.testing.assert_close(trades_loss(logits, adversarial, clean, y, 0.0), nn.functional.cross_entropy(logits, y))


@pytest.mark.parametrize("kind", ["trades", "pgd"])
def test_bad_input(kind):
    net, (x, y) = network(), batch()
    for outside in (x - 1, x + 1, torch.full_like(x, torch.nan)):
        with pytest.raises(ValueError, match=r"outside the range .* one number per channel"):
            attack(kind, net, outside, y)
    with pytest.raises(ValueError, match="epsilon has 3 numbers"):
        attack(kind, net, x, y, epsilon=[0.1, 0.1, 0.1])
