"""Layouts, coefficients and learning rates of networks that grow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_weights.functional.mixture_growth import (
    COEFFICIENT_INITS,
    block_layout,
    check_template_sets,
    grown_learning_rate,
    initial_coefficients,
    initial_templates,
    joint_loss,
    least_overlap,
    new_coefficients,
    planned_phase,
)


def alphas(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(4)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_members_are_on_the_diagonal():
    assert block_layout(True, True) == ((0, 2, 3, 1), 2)
    assert block_layout(False, True) == ((0, 1), 1)
    assert block_layout(True, False) == ((0, 1), 2)
    assert block_layout(True, True, grouped=True) == ((0, 1), 1)


@pytest.mark.parametrize("split", [(False, False, False), (False, True, True), (True, False, True)])
def test_layouts_that_are_none(split):
    with pytest.raises(ValueError, match="split_in"):
        block_layout(*split)


@pytest.mark.parametrize("sets", [(1, 0, 0, 1), (0, 1), (0, 1, 1, 1), (0, 0, 1, 1), (0, 1, 2, 0), "0101"])
def test_sets_that_do_not_cover(sets):
    with pytest.raises(ValueError, match=r"template_sets is .*allowed are \(0, 1, 0, 1\) and \(0, 1, 1, 0\)"):
        check_template_sets(sets)


@pytest.mark.parametrize(("init", "fan"), [("kaiming", 16 * 9), ("official", 32 * 16 * 9)])
def test_variance_of_templates(init, fan):
    templates = initial_templates(3, (32, 16, 3, 3), init, generator())
    assert float(templates.var() * fan / 2) == pytest.approx(1.0, rel=0.05)
    # what the library would take for the fan-in of the stack
    stacked = torch.nn.init._calculate_fan_in_and_fan_out(templates)[0]
    assert (stacked == fan) is (init == "official")


@settings(max_examples=30, deadline=None)
@given(blocks=st.integers(2, 4), count=st.integers(1, 6))
def test_rows_or_columns_are_orthonormal(blocks, count):
    rows = initial_coefficients(blocks, count, generator())
    product = rows @ rows.T if blocks <= count else rows.T @ rows
    torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 8), seed=st.integers(0, 1000), scale=st.just(0.0) | st.floats(1e-6, 4.0))
def test_orthogonal(count, seed, scale):
    before = alphas(count, seed)
    second, last = new_coefficients(before, "orthogonal", scale)
    assert torch.equal(second, before[2])
    assert float(last.norm()) == pytest.approx(scale, abs=1e-9)
    rows = torch.stack(before[:3])
    if count > 3:
        assert (rows @ last).abs().max() < 1e-9 * (1 + scale)
    # no other unit vector has less overlap, by numpy's eigenvalues
    least = np.linalg.eigvalsh((rows.T @ rows).numpy())[0]
    assert float((rows @ last).square().sum()) == pytest.approx(max(least, 0.0) * scale**2, abs=1e-8)
    if scale:
        assert float(last[last.abs().argmax()]) > 0
    small, direction = new_coefficients(before, "scaled", scale)
    assert torch.equal(direction, last)
    torch.testing.assert_close(small, scale * before[2] / before[2].norm())


def test_sign_is_the_same_for_every_row_order_and_sign():
    rows = torch.stack(alphas(4)[:3])
    torch.testing.assert_close(least_overlap(rows), least_overlap(-rows.flip(0)))
    assert least_overlap(rows.float()).dtype == torch.float32


@pytest.mark.parametrize(("sets", "sources"), [((0, 1, 0, 1), (0, 1)), ((0, 1, 1, 0), (1, 0))])
def test_copy(sets, sources):
    before = alphas(3)
    exact = new_coefficients(before, "copy", 0.0, sets)
    assert all(torch.equal(new, before[source]) for new, source in zip(exact, sources, strict=True))
    noisy = new_coefficients(before, "copy", 0.5, sets, generator(1))
    noise = [new - before[source] for new, source in zip(noisy, sources, strict=True)]
    torch.testing.assert_close(noise[0], noise[1])
    assert float(noise[0].norm()) == pytest.approx(0.5)
    assert (noise[0] >= 0).all()


def test_the_others():
    before = alphas(5)
    assert all(not new.any() for new in new_coefficients(before, "zero"))
    assert all(torch.equal(a, b) for a, b in zip(new_coefficients(before, "none"), before[2:], strict=True))
    drawn = torch.stack(new_coefficients(before, "random", 2.0, generator=generator()))
    assert drawn.min() >= 0
    assert 1.0 < drawn.max() < 2.0
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("init", COEFFICIENT_INITS)
def test_nothing_is_changed_and_the_generator_decides(init):
    before = alphas(3)
    kept = [alpha.clone() for alpha in before]
    state = torch.get_rng_state()
    first, second = (new_coefficients(before, init, 0.3, generator=generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(new.data_ptr() == alpha.data_ptr() for new in first for alpha in before)


def test_bad_input():
    with pytest.raises(ValueError, match="coefficient_init is 'svd'; allowed are 'orthogonal'"):
        new_coefficients(alphas(2), "svd")
    with pytest.raises(ValueError, match="coefficient_scale is -1"):
        new_coefficients(alphas(2), "zero", -1)
    with pytest.raises(ValueError, match="init is 'xavier'"):
        initial_templates(2, (2, 2), "xavier")


def test_phases_and_joint_loss():
    assert [planned_phase(epoch, (0, 2)) for epoch in range(3)] == [1, 1, 2]
    assert planned_phase(0, (0, 0)) == 2
    assert float(joint_loss(torch.tensor(3.0), torch.tensor(1.0), 0.1)) == pytest.approx(0.65)


def test_learning_rates_of_the_paper():
    """40 epochs, 4 cycles, a peak that halves, but not below the minimum, and a first epoch that warms up."""
    rates = [grown_learning_rate(epoch, 40) for epoch in range(40)]
    assert rates[0] == rates[30] == 3e-5  # the fourth peak would be 1.25e-5
    assert rates[10] == pytest.approx(5e-5)
    assert rates[5] == pytest.approx(6.5e-5)
    assert rates[20] == rates[29] == 3e-5
    assert max(rates) == rates[1] < 1e-4
    plain = [grown_learning_rate(epoch, 8, 1.0, 0.0, cycles=1, warmup=0) for epoch in range(8)]
    wanted = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(wanted, 8)
    for rate in plain:
        assert rate == pytest.approx(wanted.param_groups[0]["lr"])
        wanted.step()
        schedule.step()
