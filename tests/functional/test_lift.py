"""Selection of principal weights, and what moves with it, against numpy, closed forms and properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_weights.errors import ShardedParameterError
from lightning_weights.functional.lift import (
    budget,
    carry,
    gather_entries,
    low_rank_approximation,
    mask_churn,
    remember_originals,
    select_indices,
)

SHAPES = [(20, 12), (10, 24), (16, 16), (1, 9)]
CHOICES = st.sets(st.integers(0, 30), min_size=1).map(lambda s: torch.tensor(sorted(s), dtype=torch.int32))


def decaying(rows, columns, power=1.0):
    """A matrix whose singular values fall like those of trained weights."""
    u, _ = torch.linalg.qr(torch.randn(rows, min(rows, columns), dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, min(rows, columns), dtype=torch.float64))
    return ((u * torch.arange(1, min(rows, columns) + 1).pow(-power)) @ v.T).float()


def largest(scores, count):
    """Of equal scores the one with the lowest index, by a stable sort."""
    order = np.argsort(-scores.flatten(), kind="stable")
    return sorted(order[:count].tolist())


def principal(weight, rank):
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    return np.abs((u[:, :rank] * s[:rank]) @ vh[:rank])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("svd", ["exact", "gram", "randomized"])
def test_lift_takes_the_largest_after_rank_reduction(shape, svd):
    weight, count = torch.randn(shape), min(9, shape[0] * shape[1])
    scores = principal(weight, 1)
    assert select_indices(weight, count, filter_rank=1, svd=svd).tolist() == largest(scores, count)
    bottom = select_indices(weight, count, "bottom", filter_rank=1, svd=svd)
    assert bottom.tolist() == largest(-scores, count)


@pytest.mark.parametrize("shape", SHAPES)
def test_other_selectors(shape):
    weight, gradient = torch.randn(shape), torch.randn(shape)
    count = weight.numel() // 3
    assert select_indices(weight, count, "magnitude").tolist() == largest(weight.abs().numpy(), count)
    by_gradient = select_indices(weight, count, "gradient", gradient=gradient)
    assert by_gradient.tolist() == largest(gradient.abs().numpy(), count)
    random = select_indices(weight, count, "random", seed=1)
    assert random.tolist() == sorted(set(random.tolist()))
    assert len(random) == count
    assert torch.equal(random, select_indices(2 * weight, count, "random", seed=1))
    assert not torch.equal(random, select_indices(weight, count, "random", seed=2))


def test_random_reaches_every_entry_equally():
    counts = torch.zeros(40)
    for seed in range(1000):
        counts[select_indices(torch.zeros(5, 8), 10, "random", seed=seed).long()] += 1
    assert (counts / 1000 - 0.25).abs().max() < 0.06  # four standard deviations


@given(st.lists(st.integers(0, 2), min_size=12, max_size=12), st.integers(1, 12))
def test_ties_go_to_the_lowest_index(values, count):
    weight = torch.tensor(values).float().view(3, 4)
    assert select_indices(weight, count, "magnitude").tolist() == largest(weight.numpy(), count)
    assert select_indices(weight, count, "bottom", filter_rank=3).tolist() == largest(-weight.numpy(), count)


def test_indices_are_int32_and_ascending():
    indices = select_indices(decaying(30, 20), 77, filter_rank=4)
    assert indices.dtype == torch.int32
    assert (indices.diff() > 0).all()
    assert len(indices) == 77


@pytest.mark.parametrize("svd", ["gram", "randomized"])
@pytest.mark.parametrize("shape", [(192, 768), (576, 576)])
def test_fast_decompositions_choose_the_same_entries(shape, svd):
    weight = decaying(*shape, power=0.5)
    count = budget(shape, density=0.05)
    exact, fast = (select_indices(weight, count, filter_rank=16, svd=method) for method in ("exact", svd))
    assert mask_churn(exact, fast) < 0.01


@pytest.mark.parametrize("rank", [12, 13, 500])
def test_full_rank_is_magnitude(rank):
    weight = torch.randn(20, 12)
    magnitude = select_indices(weight, 50, "magnitude")
    assert torch.equal(select_indices(weight, 50, filter_rank=rank), magnitude)


def test_a_matrix_of_low_rank_is_magnitude():
    weight = torch.randn(20, 3) @ torch.randn(3, 12)
    magnitude = select_indices(weight, 50, "magnitude")
    for svd in ("exact", "gram"):
        assert torch.equal(select_indices(weight, 50, filter_rank=3, svd=svd), magnitude)


@pytest.mark.parametrize("factor", [-1.0, 1e-12, 3e10])
def test_scale_and_sign_do_not_matter(factor):
    weight = decaying(24, 16)
    assert torch.equal(
        select_indices(weight, 60, filter_rank=3, svd="exact"),
        select_indices(factor * weight, 60, filter_rank=3, svd="exact"),
    )


def test_permutations_permute_the_mask():
    weight, rows, columns = decaying(24, 16), torch.randperm(24), torch.randperm(16)
    mask = torch.zeros(24 * 16, dtype=torch.bool)
    mask[select_indices(weight, 60, filter_rank=3).long()] = True
    moved = select_indices(weight[rows][:, columns], 60, filter_rank=3)
    assert torch.equal(mask.view(24, 16)[rows][:, columns].flatten().nonzero().flatten(), moved.long())


def test_bottom_and_lift_are_disjoint():
    weight = decaying(20, 12)
    lift, bottom = (set(select_indices(weight, 120, kind, filter_rank=3).tolist()) for kind in ("lift", "bottom"))
    assert not lift & bottom


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_choose_what_their_values_say(dtype):
    weight = decaying(20, 12).to(dtype)
    expected = select_indices(weight.double(), 60, filter_rank=3, svd="exact")
    assert mask_churn(expected, select_indices(weight, 60, filter_rank=3, svd="exact")) <= 1 / 60


def test_low_rank_approximation_is_the_best_of_its_rank():
    weight = torch.randn(9, 7, dtype=torch.float64)
    u, s, vh = np.linalg.svd(weight.numpy())
    best = low_rank_approximation(weight, 3)
    np.testing.assert_allclose(best.numpy(), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-12)
    assert torch.equal(low_rank_approximation(weight, 7), weight)
    assert low_rank_approximation(weight.bfloat16(), 3).dtype == torch.float32


def test_precision_settings_and_autocast_do_not_reach_the_choice():
    weight = decaying(64, 48)
    expected = select_indices(weight, 100, filter_rank=4)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = select_indices(weight, 100, filter_rank=4)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(got, expected)


def test_choosing_draws_no_global_random_numbers():
    before = torch.get_rng_state()
    for selector in ("lift", "random"):
        select_indices(torch.ones(300, 300), 10, selector, filter_rank=2, svd="randomized")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "rule", "count"),
    [
        ((4096, 4096), {"budget_rank": 128}, 1_048_576),  # 6.25 % of the matrix
        ((4096, 14336), {"budget_rank": 128}, 2_359_296),  # 4.0 %
        ((4, 5), {"budget_rank": 100}, 20),
        ((4, 5), {"density": 1.0}, 20),
        ((4, 5), {"density": 0.26}, 5),
        ((4, 5), {"density": 1e-9}, 1),
    ],
)
def test_budget(shape, rule, count):
    assert budget(shape, **rule) == count


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one"),
        ({"budget_rank": 1, "density": 0.1}, "exactly one"),
        ({"budget_rank": 0}, "budget_rank is 0"),
        ({"budget_rank": 1.5}, "budget_rank is 1.5"),
        ({"density": 0.0}, r"density is 0\.0"),
        ({"density": 1.01}, r"density is 1\.01"),
    ],
)
def test_bad_budgets(rule, message):
    with pytest.raises(ValueError, match=message):
        budget((4, 5), **rule)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rank", [1, 9])
def test_weights_that_are_no_numbers_are_refused(bad, rank):
    weight = torch.ones(4, 5)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        select_indices(weight, 3, filter_rank=rank)
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        select_indices(weight, 3, "magnitude")


def test_bad_arguments_are_named():
    weight = torch.ones(4, 5)
    for count in (0, 21, 1.5):
        with pytest.raises(ValueError, match=f"count is {count}"):
            select_indices(weight, count)
    with pytest.raises(ValueError, match="selector is 'movement'"):
        select_indices(weight, 3, "movement")
    with pytest.raises(ValueError, match="rank is 0"):
        select_indices(weight, 3, filter_rank=0)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        select_indices(weight[:, 0], 3)
    with pytest.raises(ValueError, match="dense gradient"):
        select_indices(weight, 3, "gradient")
    with pytest.raises(ValueError, match="int32"):
        select_indices(torch.empty(1 << 16, 1 << 16, device="meta"), 3)
    weight.placements = ()
    with pytest.raises(ShardedParameterError, match="whole matrix"):
        select_indices(weight, 3)


@given(CHOICES, CHOICES)
def test_carry_is_scatter_and_gather(before, after):
    values = torch.arange(1.0, len(before) + 1)
    dense = torch.zeros(31)
    dense[before.long()] = values
    assert torch.equal(carry(values, before, after), dense[after.long()])
    assert mask_churn(before, after) == pytest.approx(len(set(after.tolist()) - set(before.tolist())) / len(after))


@given(st.lists(CHOICES, min_size=1, max_size=4))
def test_originals_are_those_before_any_step(selections):
    original = torch.randn(31)
    weight, known, values = original.clone().view(31, 1), torch.empty(0, dtype=torch.int32), torch.empty(0)
    for selected in selections:
        known, values = remember_originals(known, values, selected, weight)
        weight[selected.long()] += 1.0
    assert known.tolist() == sorted(set().union(*(s.tolist() for s in selections)))
    assert torch.equal(values, original[known.long()])


def test_entries_are_those_of_rows_after_rows():
    matrix = torch.arange(6.0).view(2, 3)
    idx = torch.tensor([1, 5], dtype=torch.int32)
    assert gather_entries(matrix, idx).tolist() == [1.0, 5.0]
    assert gather_entries(matrix.t(), idx).tolist() == [3.0, 5.0]
