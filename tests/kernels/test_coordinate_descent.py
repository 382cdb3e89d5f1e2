"""Coordinate descent on Gram matrices against scikit-learn, the conditions of optimality, and its specification."""

import numpy as np
import pytest
import torch

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels import use_kernels
from lightning_weights.kernels.coordinate_descent import (
    coordinate_descent,
    coordinate_descent_reference,
    duality_gap,
    eager,
)
from lightning_weights.kernels.coordinate_descent.cost import LONGEST, cost, cost_side_by_side, pick_config
from tests.kernels.buffers import guarded, strided
from tests.kernels.coordinate_descent_cases import data, penalties, scikit_learn, sums

ALPHAS = np.logspace(0.5, -3, 8)
RATIOS = (0.3, 1.0)


def solve(pairs, alphas=ALPHAS, ratios=RATIOS, own=None, **rule):
    """One path per ratio on every data set."""
    gram, moments, power = sums(*pairs)
    l1, l2 = (t.repeat(len(pairs), 1) for t in penalties(alphas, ratios))
    own = torch.arange(len(pairs)).repeat_interleave(len(ratios)) if own is None else own
    return coordinate_descent(gram, moments, own, l1, l2, power, **rule)


@pytest.mark.parametrize(("tolerance", "most"), [(1e-4, 1000), (1e-9, 150), (1e-4, 1)])
def test_it_goes_and_stops_as_scikit_learn(tolerance, most):
    x, y = data()
    found = solve([(x, y)], tolerance=tolerance, max_sweeps=most)
    for path, ratio in enumerate(RATIOS):
        weights, sweeps, gaps = scikit_learn(x, y, ALPHAS, ratio, tolerance, most)
        np.testing.assert_allclose(found.sweeps[path], sweeps, atol=1)
        np.testing.assert_allclose(found.weights[path], weights, atol=1e-4)
        np.testing.assert_allclose(found.gap[path], gaps, rtol=0.03, atol=1e-6)
        assert sweeps.max() == most or tolerance == 1e-4


def test_long_ways_of_collinear_features():
    x, y = data(rows=200, size=16, spread=0.2)
    x = x @ torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    x = 0.1 * x + x.mean(dim=1, keepdim=True)
    alphas = np.logspace(-1, -3, 3)
    found = solve([(x, y)], alphas, tolerance=1e-6, max_sweeps=3000)
    for path, ratio in enumerate(RATIOS):
        weights, sweeps, _ = scikit_learn(x, y, alphas, ratio, 1e-6, 3000)
        np.testing.assert_allclose(found.sweeps[path], sweeps, atol=2, rtol=0.02)
        np.testing.assert_allclose(x @ found.weights[path].T, x.numpy() @ weights.T, atol=1e-4)
        assert sweeps.max() > 200


def test_leaps_change_nothing_but_the_time(monkeypatch):
    pairs = [data(seed=seed, spread=0.02) for seed in (1, 2)]
    found = solve(pairs, ALPHAS[3:6], tolerance=1e-7, max_sweeps=120)
    leaps = []

    def stand_still(gram, standing, tolerance):
        leaps.append(len(standing.fold))
        return torch.zeros_like(standing.weights), torch.zeros_like(standing.limit)

    monkeypatch.setattr(eager, "leap", stand_still)
    plain = solve(pairs, ALPHAS[3:6], tolerance=1e-7, max_sweeps=120)
    assert leaps
    torch.testing.assert_close(found.sweeps, plain.sweeps, atol=1, rtol=0.01)
    torch.testing.assert_close(found.weights, plain.weights, atol=1e-5, rtol=1e-4)


def test_the_specification_and_every_dtype():
    x, y = data(size=8)
    gram, moments, power = sums((x, y))
    l1, l2 = penalties(ALPHAS[:5], RATIOS)
    arguments = gram, moments, torch.zeros(2, dtype=torch.int64), l1, l2, power
    want = coordinate_descent_reference(*arguments, None, 1e-4, 40)
    found = coordinate_descent(*arguments, max_sweeps=40)
    torch.testing.assert_close(found.sweeps, want[1], atol=1, rtol=0.0)
    torch.testing.assert_close(found.weights, want[0], atol=1e-5, rtol=1e-5)
    single = coordinate_descent(gram.float(), *arguments[1:], max_sweeps=40)
    assert single.weights.dtype == single.gap.dtype == torch.float32
    torch.testing.assert_close(single.weights.double(), want[0], atol=1e-3, rtol=1e-3)


def test_conditions_of_optimality_and_gap():
    x, y = data(spread=0.3)
    gram, moments, power = sums((x, y))
    l1, l2 = penalties(ALPHAS[:6], RATIOS)
    found = solve([(x, y)], ALPHAS[:6], tolerance=1e-9, max_sweeps=20_000)
    rough = solve([(x, y)], ALPHAS[:6], tolerance=1e-2)
    assert (found.gap <= 1e-9 * power).all()
    slopes = moments - found.weights @ gram[0] - l2[..., None] * found.weights
    active = found.weights != 0.0
    assert active.any()
    assert not active.all()
    bound = l1[..., None].expand_as(slopes)
    torch.testing.assert_close(slopes[active], (bound * found.weights.sign())[active], atol=1e-4, rtol=1e-4)
    assert (slopes.abs() <= bound + 1e-4)[~active].all()
    assert (found.weights[..., 7] == 0.0).all()  # the constant feature

    def objective(w):
        smooth = 0.5 * ((w @ gram[0]) * w).sum(-1) - w @ moments[0]
        return smooth + l1 * w.abs().sum(-1) + 0.5 * l2 * w.square().sum(-1)

    excess = objective(rough.weights) - objective(found.weights)
    assert (excess <= rough.gap + 1e-9).all()
    w = rough.weights.flatten(0, 1).T
    again = duality_gap(w, moments.T - gram[0] @ w, moments.T, l1.flatten(), l2.flatten(), power)[0]
    torch.testing.assert_close(again, rough.gap.flatten())


def test_the_largest_penalty_leaves_nothing():
    x, y = data()
    gram, moments, power = sums((x, y))
    largest = moments.abs().max()
    found = coordinate_descent(
        gram, moments, torch.tensor([0]), largest * torch.tensor([[1.0, 0.99]]), torch.zeros(1, 2), power
    )
    assert not found.weights[0, 0].any()
    assert found.sweeps[0, 0] == 0
    assert found.gap[0, 0].abs() < 1e-12
    tight = coordinate_descent(
        gram, moments, torch.tensor([0]), largest * torch.tensor([[0.99]]), torch.zeros(1, 1), power, tolerance=1e-9
    )
    assert tight.weights.count_nonzero() == 1


def test_paths_go_on_from_given_weights_and_share_matrices_in_any_order():
    pairs, alphas = [data(seed=seed) for seed in (3, 4, 5)], ALPHAS[:5]
    whole = solve(pairs, alphas)
    first = solve(pairs, alphas[:3])
    second = solve(pairs, alphas[3:], starts=first.weights[:, -1])
    torch.testing.assert_close(torch.cat([first.weights, second.weights], dim=1), whole.weights, atol=1e-5, rtol=1e-5)
    gram, moments, power = sums(*pairs)
    l1, l2 = penalties(alphas, RATIOS)
    own = torch.tensor([2, 0, 2, 0, 2])
    mixed = coordinate_descent(gram, moments, own, l1[[0, 0, 1, 1, 0]], l2[[0, 0, 1, 1, 0]], power)
    torch.testing.assert_close(mixed.weights, whole.weights[[4, 0, 5, 1, 4]], atol=1e-5, rtol=1e-5)


def test_any_layout_and_nothing_outside_is_touched():
    x, y = data()
    gram, moments, power = sums((x, y))
    tensors = [gram, moments, *penalties(ALPHAS[:4], RATIOS), power, torch.zeros(2, 9, dtype=torch.float64)]
    own = torch.zeros(2, dtype=torch.int64)

    def run(gram, moments, l1, l2, power, starts):
        return coordinate_descent(gram, moments, own, l1, l2, power, starts=starts, max_sweeps=50)

    want = run(*tensors)
    copies, clean = guarded(tensors, shift=1)
    for inputs in (copies, [strided(tensor) for tensor in tensors]):
        for found, expected in zip(run(*inputs), want, strict=True):
            torch.testing.assert_close(found, expected)
    assert clean()
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(copies, tensors, strict=True))


def test_opcheck_compile_and_nothing_to_do():
    x, y = data()
    gram, moments, power = sums((x, y))
    l1, l2 = penalties(ALPHAS[:3], RATIOS)
    own = torch.zeros(2, dtype=torch.int64)
    arguments = gram, moments, own, l1, l2, power
    operator = torch.ops.lightning_weights.coordinate_descent.default
    results = torch.library.opcheck(operator, (*arguments, None, 1e-4, 3))
    assert set(results.values()) == {"SUCCESS"}
    compiled = torch.compile(coordinate_descent, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments).weights, coordinate_descent(*arguments).weights)
    empty = coordinate_descent(gram, moments, own[:0], l1[:0], l2[:0], power)
    assert empty.weights.shape == (0, 3, 9)


def test_bad_input():
    x, y = data()
    gram, moments, power = sums((x, y))
    l1, l2 = penalties(ALPHAS, RATIOS)
    own = torch.zeros(2, dtype=torch.int64)
    for wrong in (
        (gram[0], moments, own, l1, l2, power),
        (gram, moments[:, 1:], own, l1, l2, power),
        (gram, moments, own[:1], l1, l2, power),
        (gram, moments, own, l1, l2[:, 1:], power),
    ):
        with pytest.raises(ValueError, match=r"allowed are \(F, p, p\)"):
            coordinate_descent(*wrong)
    with pytest.raises(ValueError, match="for starts None or"):
        coordinate_descent(gram, moments, own, l1, l2, power, starts=torch.zeros(2, 3))
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET"):
        coordinate_descent(gram, moments, own, l1, l2, power)


def test_the_cost_model():
    length, warps = pick_config(43, 4)
    assert (length, warps) == (64, 1)
    assert all(pick_config(size, 4)[0] * 4 <= 512 * pick_config(size, 4)[1] for size in (1, 100, LONGEST))
    moved = cost(2, 3, 43, 0)
    row, rest = torch.empty(length), torch.empty(2, 3)
    assert moved.bytes_read == 2 * (43 + 1) * row.nbytes + 2 * rest.nbytes + 2 * (4 + 8)
    assert moved.bytes_written == 6 * row.nbytes + rest.nbytes + 2 * rest.nbytes
    assert cost(2, 3, 43, 10).flops - moved.flops == 10 * 43 * length * 12
    assert cost_side_by_side(2, 43, 10).bytes_read > 2 * cost(2, 1, 43, 20).bytes_read
