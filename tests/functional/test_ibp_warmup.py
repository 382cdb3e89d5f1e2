"""Schedule, box, loss and regularisers against their definitions, and the regularisers as a problem of their own."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_weights.functional.ibp_warmup import (
    epsilon_at,
    input_box,
    layer_sums,
    relu_balance,
    robust_loss,
    tightness,
)
from lightning_weights.functional.intervals import PreActivation, interval_forward

RAMPS = st.fixed_dictionaries(
    {
        "steps_per_epoch": st.integers(1, 30),
        "start_epoch": st.integers(1, 4),
        "ramp_epochs": st.integers(1, 9),
        "max_eps": st.floats(1e-3, 1),
        "mid": st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]),
        "beta": st.sampled_from([2.0, 3.0, 4.0, 5.5]),
        "kind": st.sampled_from(["smoothed", "linear"]),
    }
)


@given(RAMPS)
def test_schedules_rise_from_zero_to_the_maximum(ramp):
    start = (ramp["start_epoch"] - 1) * ramp["steps_per_epoch"]
    end = start + ramp["ramp_epochs"] * ramp["steps_per_epoch"]
    values = [epsilon_at(step, **ramp) for step in range(end + 3)]
    assert values[: start + 1] == [0.0] * (start + 1)
    assert values[end:] == [ramp["max_eps"]] * 3
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(values))
    assert end == start + 1 or values[end - 1] < ramp["max_eps"]


def test_smoothed_schedule_has_no_kink():
    values = [epsilon_at(s, 1000, max_eps=0.4, start_epoch=1, ramp_epochs=20) for s in range(20_000)]
    slopes = [b - a for a, b in pairwise(values)]
    assert max(abs(b - a) for a, b in pairwise(slopes)) < 1e-3 * max(slopes)
    assert slopes[5000:19_000] == pytest.approx([slopes[5000]] * 14_000)
    assert values[2500] / values[1250] == pytest.approx(2**4)


def test_other_schedules():
    assert [epsilon_at(s, 2, max_eps=1.0, kind="linear", start_epoch=2, ramp_epochs=2) for s in (2, 3, 4, 5, 6)] == [
        *(0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert epsilon_at(0, 2, max_eps=0.3, kind="fixed") == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": -1}, "step is -1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"max_eps": -0.1}, "max_eps is -0.1"),
        ({"kind": "cosine"}, "kind is 'cosine'; allowed are 'smoothed', 'linear', 'fixed'"),
        ({"start_epoch": 0}, "start_epoch is 0"),
        ({"ramp_epochs": 1.5}, "ramp_epochs is 1.5"),
        ({"mid": 1.01}, "mid is 1.01"),
        ({"beta": 1.9}, "beta is 1.9"),
    ],
)
def test_bad_schedules(change, message):
    with pytest.raises(ValueError, match=message):
        epsilon_at(**{"step": 0, "steps_per_epoch": 1, "max_eps": 1.0, **change})


@given(st.floats(0, 1), st.integers(0, 100))
def test_box_holds_exactly_the_valid_images_around(eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(4, 3, 5, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.5, 2.0]
    z, lower, upper = input_box(x, eps, mean, std)
    back = [end * torch.tensor(std)[:, None] + torch.tensor(mean)[:, None] for end in (z, lower, upper)]
    torch.testing.assert_close(back, [x, (x - eps).clamp_min(0), (x + eps).clamp_max(1)], rtol=1e-6, atol=1e-7)
    assert ((lower <= z) & (z <= upper)).all()


def test_box_forms():
    x = torch.rand(2, 7)
    _, lower, upper = input_box(x, 0.5, clip_min=None, clip_max=None)
    torch.testing.assert_close((lower, upper), (x - 0.5, x + 0.5))
    by_tensor = input_box(x, torch.tensor(0.1))
    torch.testing.assert_close(by_tensor, input_box(x, 0.1))
    z, lower, upper = input_box(x, 0.0)
    assert torch.equal(lower, z)
    assert torch.equal(upper, z)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": 8.0}, r"eps is 8.0, more than the whole range \[0.0, 1.0\].*did you mean eps/255"),
        ({"eps": torch.tensor([0.1])}, r"eps has shape \(1,\)"),
        ({"eps": torch.tensor(-0.5)}, "eps is -0.5"),
        ({"eps": torch.tensor(8.0)}, "did you mean eps/255"),
        ({"eps": torch.tensor(math.nan)}, "eps is nan"),
        ({"x": torch.full((1, 2, 3), math.nan)}, "or NaN"),
        ({"std": [0.0, 1.0]}, r"std is \[0.0, 1.0\]"),
        ({"std": [1.0]}, r"std has 1 entries"),
        ({"mean": [0.0] * 3}, r"mean has 3 entries"),
        ({"x": torch.full((1, 2, 3), 1.01)}, r"pixels outside \[0.0, 1.0\].*before normalisation"),
        ({"x": torch.zeros(1, 2, 3, dtype=torch.float16)}, "x is in torch.float16"),
        ({"clip_min": 1.0}, "clip_min is 1.0 and clip_max 1.0"),
    ],
)
def test_bad_boxes(arguments, message):
    with pytest.raises(ValueError, match=message):
        input_box(**{"x": torch.zeros(1, 2, 3), "eps": 0.1, **arguments})


def test_robust_loss_is_cross_entropy_with_worst_logits():
    margins = torch.randn(8, 4, dtype=torch.float64)
    worst = torch.cat([torch.zeros(8, 1, dtype=torch.float64), -margins], 1)
    expected = nn.functional.cross_entropy(worst, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(robust_loss(margins), expected)
    assert robust_loss(torch.full((1, 3), -1e6)).isfinite()


@st.composite
def layers(draw):
    """Draw boxes of a few layers, some of them without active, inactive or unstable units."""
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        center = torch.randn(5, 6, generator=generator, dtype=torch.float64) + draw(st.sampled_from([-9, -1, 0, 1, 9]))
        width = draw(st.sampled_from([1e-3, 0.5, 20.0]))
        boxes.append(PreActivation(center, torch.rand(5, 6, generator=generator, dtype=torch.float64) * width))
    return boxes


def regularisers_by_loops(boxes, r0, tol):
    """The definitions as they stand, in floats: NaN and infinite terms are dropped but counted."""
    tight = balance = 0.0
    for box in boxes:
        tight += max(tol - r0 / max(box.radius.mean().item(), 1e-12), 0) / tol
        active, inactive = box.center[box.lower > 0], box.center[box.upper < 0]
        term = 0.0
        for above, below in (
            (active.sum(), -inactive.sum()),
            *[tuple((part - box.center.mean()).square().sum() for part in (active, inactive))],
        ):
            ratio = above / below
            term += max(tol - min(ratio, 1 / max(ratio, torch.tensor(1e-12))), 0) / tol
        balance += term if math.isfinite(term) else 0.0
    return tight / len(boxes), balance / len(boxes)


@given(layers(), st.floats(1e-3, 2), st.sampled_from([0.3, 0.5, 1.0]))
@settings(deadline=None)
def test_regularisers_are_the_definitions(boxes, r0, tol):
    sums = layer_sums(boxes)
    tight, balance = regularisers_by_loops(boxes, r0, tol)
    assert tightness(sums, torch.tensor(r0, dtype=torch.float64), tol).item() == pytest.approx(tight, abs=1e-9)
    assert relu_balance(sums, tol).item() == pytest.approx(float(balance), abs=1e-9)


@pytest.mark.parametrize(("shift", "expected"), [(9.0, 0.0), (-9.0, 1.0)])
def test_degenerate_layers_are_constants(shift, expected):
    """All units active: dropped, but counted. None active: 2/m, without a gradient."""
    center = (torch.linspace(-1, 1, 12).view(3, 4) + shift).requires_grad_()
    other = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    radius = torch.full((3, 4), 0.01)
    loss = relu_balance(layer_sums([PreActivation(center, radius), PreActivation(other, radius)]), tol=0.5)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert center.grad.abs().sum() == 0
    assert other.grad.isfinite().all()


def test_unbalanced_layers_have_gradients():
    center = torch.tensor([4.0, 3.0, -0.5, 0.1], requires_grad=True)
    loss = relu_balance(layer_sums([PreActivation(center, torch.full((4,), 0.2))]))
    loss.backward()
    assert loss > 0.5
    assert (center.grad != 0).any()


def test_networks_without_relu_have_no_regularisers():
    with pytest.raises(ValueError, match="no ReLU"):
        layer_sums([])


@pytest.mark.parametrize("regulariser", [lambda s: tightness(s, torch.ones(()), 0.0), lambda s: relu_balance(s, -1.0)])
def test_tolerances_are_positive(regulariser):
    with pytest.raises(ValueError, match="tol is"):
        regulariser(torch.ones(1, 9))


@pytest.mark.filterwarnings("error")
def test_regularisers_alone_shape_the_bounds_of_digits():
    """200 steps of Adam take the widths to the tolerance and make nine of ten ReLUs stable (other seeds: up to 300)."""
    datasets = pytest.importorskip("sklearn.datasets")
    x = torch.tensor(datasets.load_digits().data, dtype=torch.float32) / 16
    with torch.random.fork_rng():
        torch.manual_seed(1)
        widths = (64, *[128] * 5)
        hidden = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()] for a, b in pairwise(widths)]
        net = nn.Sequential(*(layer for block in hidden for layer in block), nn.Linear(128, 10))
        order = torch.cat([torch.randperm(len(x)) for _ in range(16)])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    def penalties(step):
        z, lower, upper = input_box(x[order[128 * step : 128 * (step + 1)]], 0.02)
        sums = layer_sums(interval_forward(net, z, lower, upper).preactivations)
        return tightness(sums, ((upper - lower) / 2).mean()), relu_balance(sums), sums.detach()

    first, _, sums = penalties(0)
    assert first > 0.9
    assert sums[:, 1:3].sum() / sums[:, 8].sum() < 0.3
    for step in range(200):
        tight, balance, _ = penalties(step)
        optimizer.zero_grad()
        (tight + balance).backward()
        optimizer.step()
    tight, _, sums = penalties(200)
    assert tight < 0.05
    assert sums[:, 1:3].sum() / sums[:, 8].sum() >= 0.9
