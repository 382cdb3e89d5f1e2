"""Advantages, weights and volumes against closed forms, properties and another library."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.dynamic_reward import (
    ParetoArchive,
    check_rewards,
    checked_weights,
    group_advantage,
    hypervolume,
    influence,
    meta_reward,
    normalize_then_sum,
    returns_to_go,
    token_advantages,
    update_log_weights,
    update_reward_weights,
    whiten,
)

coordinate = st.integers(-2, 4).map(float)
few = settings(max_examples=40, deadline=None)


def fronts(dimensions, most=7):
    return st.lists(st.tuples(*[coordinate] * dimensions), min_size=1, max_size=most)


def by_inclusion(points):
    """Add up boxes by inclusion and exclusion."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            corner = [max(min(values), 0.0) for values in zip(*chosen, strict=True)]
            total += (-1) ** (size + 1) * math.prod(corner)
    return total


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_volumes_are_those_of_inclusion_and_exclusion(dimensions):
    @few
    @given(fronts(dimensions))
    def check(points):
        assert hypervolume(points, [0.0] * dimensions) == pytest.approx(by_inclusion(points), abs=1e-12)

    check()


@few
@given(fronts(3), st.tuples(*[coordinate] * 3), st.permutations(range(3)))
def test_what_leaves_a_volume_alone_and_what_does_not(points, another, order):
    reference = [0.0, 0.0, 0.0]
    volume = hypervolume(points, reference)
    assert volume >= 0.0
    assert hypervolume([*points, another], reference) >= volume
    dominated = [tuple(value - 0.5 for value in points[0])]
    assert hypervolume([*points, points[0], *dominated], reference) == volume
    assert hypervolume(points[::-1], reference) == volume
    swapped = [[point[k] for k in order] for point in points]
    assert hypervolume(swapped, reference) == pytest.approx(volume, abs=1e-12)
    scaled = [[2.0 * x, 0.5 * y, 3.0 * z] for x, y, z in points]
    assert hypervolume(scaled, reference) == pytest.approx(3.0 * volume, abs=1e-12)
    negated = [[x, -y, z] for x, y, z in points]
    assert hypervolume(negated, reference, [True, False, True]) == volume


@few
@given(fronts(3, 12))
def test_an_archive_grows_by_what_the_volume_grows(points):
    archive, whole = ParetoArchive([0.0] * 3), ParetoArchive([0.0] * 3, prune=False)
    for place, point in enumerate(points):
        before = hypervolume(points[:place], [0.0] * 3) if place else 0.0
        gain = archive.add(point)
        assert gain == pytest.approx(hypervolume(points[: place + 1], [0.0] * 3) - before, abs=1e-12)
        assert whole.add(point) == pytest.approx(gain, abs=1e-12)
        assert archive.hypervolume() == pytest.approx(whole.hypervolume(), abs=1e-12)
    assert len(archive.points) <= len(whole.points)
    for a, b in itertools.permutations(archive.points, 2):
        assert any(x < y for x, y in zip(a, b, strict=True)), "one of the kept dominates another"


def test_archives_resume():
    archive = ParetoArchive([0.0, 9.0], [True, False], [1.0, 9.0])
    archive.add([0.5, 4.0])
    again = ParetoArchive([7.0, 7.0], [True, False], [1.0, 9.0])
    again.load_state_dict(archive.state_dict())
    assert again.hypervolume() == archive.hypervolume() > 0
    assert again.add([0.7, 3.0]) == archive.add([0.7, 3.0])


@pytest.mark.parametrize("dimensions", [2, 3, 4, 5])
def test_volumes_are_moocores(dimensions):
    moocore = pytest.importorskip("moocore")
    generator = np.random.default_rng(dimensions)
    for count in (1, 6, 40):
        points, reference = generator.normal(size=(count, dimensions)), 0.3 * generator.normal(size=dimensions)
        want = moocore.hypervolume(points, ref=reference, maximise=True)  # many points are below the reference
        assert hypervolume(points.tolist(), reference.tolist()) == pytest.approx(want, rel=1e-12)
    front = np.abs(generator.normal(size=(300 if dimensions < 4 else 30, dimensions)))
    front /= np.linalg.norm(front, axis=1, keepdims=True)
    want = moocore.hypervolume(front, ref=np.zeros(dimensions), maximise=True)
    assert hypervolume(front.tolist(), [0.0] * dimensions) == pytest.approx(want, rel=1e-12)


def test_volumes_are_what_random_points_hit():
    generator = np.random.default_rng(0)
    points = generator.random((30, 3))
    hits = generator.random((20_000, 1, 3))
    share = (hits <= points).all(axis=2).any(axis=1).mean()
    found = hypervolume(torch.tensor(points), torch.zeros(3))
    assert abs(found - share) < 3 * math.sqrt(share * (1 - share) / len(hits))


@pytest.mark.parametrize(
    ("points", "reference", "maximize", "message"),
    [
        ([[1.0, 2.0]], [0.0], None, r"points have shape \(1, 2\) and reference has 1 numbers"),
        ([[1.0], [1.0, 2.0]], [0.0], None, "points have different lengths"),
        ([[1.0]], [0.0], [True, False], "reference has 1 numbers and maximize 2"),
        ([[math.nan]], [0.0], None, "points holds"),
        ([[1.0]], [math.inf], None, "reference holds"),
    ],
)
def test_bad_vectors(points, reference, maximize, message):
    with pytest.raises(ValueError, match=message):
        hypervolume(points, reference, maximize)


def test_bad_archives():
    with pytest.raises(ValueError, match="reference has 2 numbers, maximize 1"):
        ParetoArchive([0.0, 0.0], [True])
    with pytest.raises(ValueError, match=r"scale is 0.0"):
        ParetoArchive([0.0], scale=[0.0])


def test_the_meta_reward_is_held():
    assert meta_reward(0.0) == 0.5
    assert meta_reward(-3.0) == 0.5
    assert 0.5 < meta_reward(1e-9) < meta_reward(2.0) < 2.0
    assert meta_reward(1.0, low=1.0, spread=0.0) == 1.0


groups = st.lists(st.integers(2, 5), min_size=1, max_size=3)


@few
@given(groups, st.integers(0, 10_000), st.floats(0.5, 4.0), st.floats(-2.0, 2.0))
def test_advantages_of_groups(sizes, seed, factor, shift):
    generator = torch.Generator().manual_seed(seed)
    group = torch.cat([torch.full((size,), 10 * place) for place, size in enumerate(sizes)])
    rewards = torch.randn(len(group), dtype=torch.float64, generator=generator)
    order = torch.randperm(len(group), generator=generator)
    for estimator in ("grpo", "grpo_nostd", "rloo"):
        found = group_advantage(rewards, group, estimator)
        for place in group.unique():
            assert abs(float(found[group == place].sum())) < 1e-9
        torch.testing.assert_close(group_advantage(rewards[order], group[order], estimator), found[order])
        moved = group_advantage(factor * rewards + shift, group, estimator)
        scale = 1.0 if estimator == "grpo" else factor
        torch.testing.assert_close(moved, scale * found, rtol=1e-3, atol=1e-4)
    others = [rewards[(group == g) & (torch.arange(len(group)) != i)].mean() for i, g in enumerate(group)]
    torch.testing.assert_close(group_advantage(rewards, group, "rloo"), rewards - torch.stack(others))
    weights = torch.rand(3, dtype=torch.float64, generator=generator)
    columns = torch.randn(len(group), 3, dtype=torch.float64, generator=generator)
    mixed = group_advantage(columns @ weights, group, "rloo")
    torch.testing.assert_close(group_advantage(columns, group, "rloo") @ weights, mixed)


@pytest.mark.parametrize("estimator", ["grpo", "grpo_nostd", "rloo"])
def test_a_group_of_equal_rewards_has_no_advantage(estimator):
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7])
    assert torch.equal(group_advantage(rewards, torch.tensor([0, 0, 0, 1, 1, 1]), estimator), torch.zeros(6))


def test_a_factor_on_all_rewards_is_taken_back_by_a_standard_deviation():
    rewards, group, mask = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4, 3)
    for estimator, kept in (("grpo", 1.0), ("reinforce++", 1.0), ("rloo", 2.0), ("reinforce", 2.0)):
        plain, scaled = (token_advantages(f * rewards, group, mask, estimator) for f in (1.0, 2.0))
        torch.testing.assert_close(scaled, kept * plain, rtol=1e-4, atol=1e-4)


def test_returns_are_discounted_from_the_last_token():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    found = returns_to_go(torch.tensor([8.0, 4.0, 9.0]), mask, gamma=0.5)
    assert found[:2].tolist() == [[4.0, 8.0, 0.0], [1.0, 2.0, 4.0]]
    white = whiten(found[:2], mask[:2])
    valid = white[mask[:2] == 1]
    torch.testing.assert_close(valid.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(valid.var(), torch.tensor(1.0))
    assert white[0, 2] == 0.0


def test_parts_of_a_batch_are_whitened_together():
    values, mask = torch.randn(4, 3), torch.ones(4, 3)
    sums: list[torch.Tensor] = []
    whiten(values[:2], mask[:2], lambda tensor: sums.append(tensor) or tensor)
    count, together = mask.sum(), values.sum()
    variance = (values - together / count).square().sum()
    answers = iter([torch.stack([count, together]), variance])
    torch.testing.assert_close(whiten(values[:2], mask[:2], lambda _: next(answers)), whiten(values, mask)[:2])


def test_normalising_every_reward_makes_their_scales_equal():
    rewards, group = torch.rand(8, 2), torch.arange(8) // 4
    weights = torch.tensor([0.5, 0.5])
    found = normalize_then_sum(rewards, group, weights)
    torch.testing.assert_close(
        normalize_then_sum(rewards * torch.tensor([1.0, 500.0]), group, weights), found, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(found.std(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.tensor([0, 0, 1]), "rloo"), "a group has 1 response"),
        ((torch.zeros(3), torch.tensor([0, 0]), "grpo"), r"rewards have shape \(3,\) and group \(2,\)"),
        ((torch.zeros(2), torch.tensor([0, 0]), "ppo"), "estimator is 'ppo'; allowed are 'grpo'"),
    ],
)
def test_bad_groups(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_advantage(*arguments)


def test_bad_masks_and_rewards():
    with pytest.raises(ValueError, match="no valid token"):
        token_advantages(torch.zeros(2), torch.zeros(2), torch.zeros(2, 3), "rloo")
    with pytest.raises(ValueError, match="1 tokens are valid"):
        whiten(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match=r"gamma is 1.5"):
        returns_to_go(torch.zeros(1), torch.ones(1, 1), gamma=1.5)
    with pytest.raises(ValueError, match="reward 'b' of response 1 is inf"):
        check_rewards(torch.tensor([[0.0, 0.0], [1.0, math.inf]]), ["a", "b"])
    with pytest.raises(ValueError, match="one column for each of a"):
        check_rewards(torch.zeros(2, 2), ["a"])


influences = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float64))


@few
@given(influences, influences, st.floats(0.0, 1.0), st.permutations(range(3)))
def test_weights_stay_on_the_simplex_and_add_up(first, second, eta, order):
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = update_reward_weights(start, first, eta)
    assert abs(float(found.sum()) - 1.0) < 1e-12
    assert (found > 0).all()
    torch.testing.assert_close(update_reward_weights(start, first, 0.0), start)
    torch.testing.assert_close(update_reward_weights(start, torch.full_like(first, 2.0), eta), start)
    torch.testing.assert_close(update_reward_weights(start[list(order)], first[list(order)], eta), found[list(order)])
    twice = update_log_weights(update_log_weights(start.log(), first, eta), second, eta)
    torch.testing.assert_close(twice, update_log_weights(start.log(), first + second, eta))


@few
@given(influences, st.floats(0.0, 0.33))
def test_a_floor_holds_and_the_others_keep_their_proportions(influence_, floor):
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    free, held = (update_reward_weights(start, influence_, 2.0, low) for low in (0.0, floor))
    assert (held >= floor - 1e-12).all()
    assert abs(float(held.sum()) - 1.0) < 1e-9
    above = held > floor + 1e-9
    if int(above.sum()) > 1:
        torch.testing.assert_close(held[above] / held[above].sum(), free[above] / free[above].sum())


def test_weights_that_fell_to_nothing_come_back():
    logs = torch.tensor([-2000.0, 0.0], dtype=torch.float64)
    assert update_log_weights(logs, torch.tensor([3000.0, 0.0]), 1.0).exp().tolist() == [1.0, 0.0]


def test_influences_of_known_gradients():
    gradients = torch.randn(3, 50, dtype=torch.float64)
    gram = gradients @ gradients.T
    torch.testing.assert_close(influence(gram).sum(), gradients.sum(0).square().sum())
    start = torch.tensor([0.5, 0.3, 0.2])
    alike, orthogonal = torch.ones(3, 3), torch.eye(3)
    for equal in (alike, orthogonal):
        torch.testing.assert_close(update_reward_weights(start, influence(equal), 0.5), start)
    opposed = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    assert update_reward_weights(start, influence(opposed), 0.5)[2] < 0.2
    assert update_reward_weights(torch.ones(1), influence(torch.tensor([[4.0]])), 0.5).tolist() == [1.0]
    with pytest.raises(ValueError, match=r"gram has shape \(2, 3\)"):
        influence(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.4], "sum of 0.9; allowed are weights with a sum of 1"),
        ([0.0, 1.0], r"w\[0\] is 0, and an update that multiplies"),
        ([-0.5, 1.5], r"w\[0\] is -0.5"),
        ([math.nan, 1.0], r"w\[0\] is nan"),
        ([1.0], "a list of 2 weights"),
        ("half", "a list of 2 weights"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        checked_weights("w", weights, 2)


def test_weights_that_almost_add_up_are_made_to():
    found = checked_weights("w", (0.334, 0.333, 0.333), 3)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-15)
    assert checked_weights("w", None, 4) == [0.25] * 4
    with pytest.raises(ValueError, match=r"min_weight is 0.5"):
        update_log_weights(torch.zeros(2), torch.zeros(2), 0.1, min_weight=0.5)
    with pytest.raises(ValueError, match="eta is -1"):
        update_reward_weights(torch.ones(2), torch.zeros(2), -1.0)
