"""CROWN-IBP: sound, exact where nothing is relaxed, and equal to the formula written out for two layers."""

import pytest
import torch
from torch import nn

from lightning_weights.functional.ibp_warmup import input_box, robust_loss
from lightning_weights.functional.intervals import Interval, crown_fused_loss, crown_margins, register_interval_rule
from lightning_weights.functional.intervals.crown import through_relu
from lightning_weights.functional.intervals.interval import PreActivation
from tests.functional.intervals.networks import Residual, batch, inside, make, mlp, randomised

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def averaged():
    """Without MaxPool, which is not affine."""
    net = make("convolutional")
    net[3] = nn.AvgPool2d(2)
    return net


NETWORKS = {"mlp": lambda: make("mlp"), "averaged": averaged, "residual": lambda: make("residual")}


def boxes(eps=0.04, size=6):
    x, y = batch(size)
    return (*input_box(x, eps), y)


def others(values, y):
    return torch.stack([row[torch.arange(values.shape[1]) != label] for row, label in zip(values, y, strict=True)])


@pytest.mark.parametrize("name", NETWORKS)
def test_sound_on_ten_thousand_points(name):
    net = NETWORKS[name]().eval()
    z, lower, upper, y = boxes()
    _, found = crown_margins(net, z, lower, upper, y)
    _, losses = crown_fused_loss(net, z, lower, upper, y)
    for i in range(3):
        with torch.no_grad():
            logits = net(inside(lower[i], upper[i]))
        margins = logits[:, y[i], None] - logits[:, torch.arange(4) != y[i]]
        assert (margins >= found[i] - 1e-4).all()
        entropies = nn.functional.cross_entropy(logits, y[i].expand(len(logits)), reduction="none")
        assert (entropies <= losses[i] + 1e-4).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_points_are_exact(name, training):
    net = NETWORKS[name]().train(training)
    z, _, _, y = boxes()
    out, found = crown_margins(net, z, z, z, y)
    torch.testing.assert_close(found, out.clean.gather(1, y[:, None]) - others(out.clean, y), **CLOSE)


def test_tighter_than_intervals_for_small_boxes():
    z, lower, upper, y = boxes(0.005)
    out, found = crown_margins(make("mlp").eval(), z, lower, upper, y)
    assert (found > out.margin_lower + 1e-4).float().mean() > 0.9


def test_affine_networks_are_exact():
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)).eval()
    z, lower, upper, y = boxes()
    whole = torch.func.jacrev(lambda x: net(x[None])[0])(z[0]).flatten(1)
    offset = net(torch.zeros_like(z[:1]))[0]
    center, radius = ((lower + upper) / 2).flatten(1), ((upper - lower) / 2).flatten(1)
    _, found = crown_margins(net, z, lower, upper, y)
    for i, label in enumerate(y):
        rest = torch.arange(4) != label
        rows = whole[label] - whole[rest]
        exact = rows @ center[i] - rows.abs() @ radius[i] + offset[label] - offset[rest]
        torch.testing.assert_close(found[i], exact, **CLOSE)


def test_two_layers_by_hand():
    net = randomised(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))).double()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
    y = torch.tensor([0, 1, 2, 1])
    _, found = crown_margins(net, x, x - 0.3, x + 0.2, y)
    center, radius = x - 0.05, 0.25
    for n in range(4):
        low = net[0](center[n]) - radius * net[0].weight.abs().sum(1)
        high = net[0](center[n]) + radius * net[0].weight.abs().sum(1)
        for place, j in enumerate(k for k in range(3) if k != y[n]):
            row = net[2].weight[y[n]] - net[2].weight[j]
            slope, constant = torch.zeros(5, dtype=torch.float64), net[2].bias[y[n]] - net[2].bias[j]
            for unit in range(5):
                l, u, a = low[unit], high[unit], row[unit]  # noqa: E741
                if l >= 0:
                    slope[unit] = a
                elif u > 0 and a < 0:
                    slope[unit] = a * u / (u - l)
                    constant = constant - a * u * l / (u - l)
                elif u > 0:
                    slope[unit] = a if u >= -l else 0
            merged = slope @ net[0].weight
            expected = merged @ center[n] + slope @ net[0].bias - radius * merged.abs().sum() + constant
            assert found[n, place].item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


def test_lines_enclose_the_relu():
    low = torch.tensor([-2.0, -1.0, -1.0, 0.5, -3.0, 0.0, -1.0])
    high = torch.tensor([1.0, 2.0, 1.0, 1.5, -1.0, 2.0, 0.0])
    box = PreActivation((low + high) / 2, (high - low) / 2)
    values = low + torch.linspace(0, 1, 50)[:, None] * (high - low)
    for sign in (1.0, -1.0):
        coefficients = torch.full((1, 1, len(low)), sign)
        slopes, _ = through_relu(coefficients, box)
        constants = torch.stack(
            [through_relu(coefficients * (torch.arange(len(low)) == k), box)[1][0, 0] for k in range(len(low))]
        )
        assert (sign * values.relu() >= slopes[0, 0] * values + constants - 1e-6).all()
    assert through_relu(torch.ones(1, 1, len(low)), box)[0].flatten().tolist() == [0, 1, 1, 1, 0, 1, 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_interval_loss_is_the_unfused_one(name):
    z, lower, upper, y = boxes()
    out, losses = crown_fused_loss(NETWORKS[name]().eval(), z, lower, upper, y, share=0.0)
    torch.testing.assert_close(losses.mean(), robust_loss(out.margin_lower), rtol=1e-5, atol=1e-5)


def test_share_mixes_the_bounds_of_the_sum():
    z, lower, upper, y = boxes(0.005)
    net = make("mlp").eval()
    crown, intervals, half = (crown_fused_loss(net, z, lower, upper, y, s)[1].exp() for s in (1.0, 0.0, 0.5))
    torch.testing.assert_close(half, (crown + intervals) / 2, **CLOSE)
    assert (crown < intervals).any()


@pytest.mark.parametrize("bound", [crown_margins, crown_fused_loss])
def test_gradients_are_slopes(bound):
    net = randomised(Residual()).double().train()
    x, y = batch()
    z, lower, upper = input_box(x.double(), 0.02)

    def loss():
        return bound(net, z, lower, upper, y)[1].sum()

    loss().backward()
    parameters = list(net.parameters())
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)).item()
    values = []
    for shift in (1e-6, -2e-6):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.data.add_(direction, alpha=shift)
        values.append(loss().item())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_only_affine_operations_and_relus():
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 4))
    z, lower, upper, y = boxes()
    with pytest.raises(ValueError, match=r"node '_2' .call_module 2. is neither affine nor a ReLU.*bound='ibp'"):
        crown_margins(net, z, lower, upper, y)


def test_affine_map_of_a_users_rule_is_enough():
    class Third(nn.Module):
        def forward(self, x):
            assert x.sum() < 1e9, "such a look at values cannot be traced"
            return x / 3

    @register_interval_rule(Third)
    def third(apply, x):
        return Interval(apply(x.clean), x.center / 3, x.radius / 3, affine=lambda z: z / 3)

    net, plain = mlp(norm=False), mlp(norm=False)
    plain.load_state_dict(net.state_dict())
    plain[3].weight.data.div_(3)
    net.insert(3, Third())
    z, lower, upper, y = boxes()
    torch.testing.assert_close(
        crown_margins(net, z, lower, upper, y)[1], crown_margins(plain, z, lower, upper, y)[1], **CLOSE
    )
