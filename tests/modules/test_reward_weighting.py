from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.dynamic_reward import influence, update_reward_weights
from lightning_weights.modules import RewardWeighting

NAMES = ["a.weight", "a.bias", "b.weight"]


def gradients(objectives=3, size=1.0):
    return [[size * torch.randn(4, 3), size * torch.randn(4), size * torch.randn(2, 4)] for _ in range(objectives)]


def flat(rows):
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows]).double()


def weighting(**options):
    return RewardWeighting(["x", "y", "z"], **options)


@pytest.mark.parametrize("size", [0.01, 10.0])
@pytest.mark.parametrize("normalize", ["clip", "unit", "none"])
def test_gradients_are_scaled_over_all_parameters(normalize, size):
    rows, found = gradients(size=size), weighting(normalize=normalize, layers="a", clip_norm=0.5)
    whole = flat(rows)
    norms = whole.norm(dim=1, keepdim=True)
    factors = {"unit": 1 / norms, "clip": (0.5 / norms).clamp(max=1.0), "none": torch.ones_like(norms)}[normalize]
    part = (whole * factors)[:, :16]
    torch.testing.assert_close(found.gram(rows, NAMES), part @ part.T, rtol=1e-5, atol=1e-6)
    weights = found.update(rows, names=NAMES)
    torch.testing.assert_close(
        weights, update_reward_weights(torch.ones(3).double() / 3, influence(part @ part.T), 0.1)
    )


def test_updates_accumulate():
    rows = gradients()
    once, twice = weighting(), weighting(accumulate=2)
    want = once.update(rows)
    assert torch.equal(twice.update(rows), torch.ones(3).double() / 3)
    torch.testing.assert_close(twice.update(rows), want)
    assert int(twice.count) == 0
    assert not twice.accumulator.any()


def test_the_state_is_all_there_is():
    first = weighting(initial=[0.5, 0.3, 0.2], accumulate=3)
    for _ in range(4):
        first.update(gradients())
    again = weighting(accumulate=3)
    again.load_state_dict(first.state_dict())
    for _ in range(3):
        rows = gradients()
        assert torch.equal(first.update(rows), again.update(rows))
    assert isinstance(first, nn.Module)
    assert not list(first.parameters())


def test_the_learning_rate_may_be_the_step():
    rows = gradients()
    want = weighting(eta=0.25).update(rows)
    torch.testing.assert_close(weighting(lr_coupled=True, mu=0.1).update(rows, lr=0.025), want)
    with pytest.raises(ValueError, match="lr_coupled is True, so that the learning rate is needed"):
        weighting(lr_coupled=True).update(rows)


def test_special_gradients():
    found = weighting(normalize="unit")
    rows = gradients()
    rows[1] = [torch.zeros_like(part) for part in rows[1]]
    assert found.update(rows).isfinite().all()
    before = found.weights
    rows[0][0][0, 0] = torch.inf
    assert torch.equal(found.update(rows), before)
    alike = gradients(1) * 3
    torch.testing.assert_close(found.update(alike), before)
    assert RewardWeighting(["only"]).update(gradients(1)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": "accuracy"}, "objectives is 'accuracy'; allowed is a list of names"),
        ({"objectives": ["a", "a"]}, "a list of different names"),
        ({"initial": [0.5, 0.5]}, "initial is"),
        ({"initial": [0.0, 0.5, 0.5]}, r"initial\[0\] is 0"),
        ({"eta": -1.0}, "eta is -1.0"),
        ({"mu": 0.0}, "mu is 0.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"layers": "["}, r"layers is '\['; allowed is a regular expression"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"normalize": "sum"}, "normalize is 'sum'"),
        ({"min_weight": 0.4}, "min_weight is 0.4"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RewardWeighting(**{"objectives": ["x", "y", "z"], **options})


def test_bad_updates():
    with pytest.raises(ValueError, match="gradients of 2 objectives; allowed are 3: x, y, z"):
        weighting().update(gradients(2))
    with pytest.raises(ValueError, match="the names of the parameters are needed"):
        weighting(layers="a").update(gradients())
    with pytest.raises(ValueError, match=r"layers is None, .* they are: none"):
        weighting().chosen([])
    rows = gradients()
    rows[0][0].placements, rows[0][0].device_mesh = [SimpleNamespace(is_replicate=lambda: False)], "mesh"
    with pytest.raises(ShardedParameterError, match="sharded in 2 different ways"):
        weighting().update(rows)
    with pytest.raises(ValueError, match=r"layers is 'c', which is found in no name .*: a\.weight, a\.bias, b\.weight"):
        weighting(layers="c").update(gradients(), names=NAMES)
