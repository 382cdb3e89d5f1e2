"""The simulator of charged particles against sums written out, scipy, and what mechanics demands."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from lightning_weights.functional import n_body
from lightning_weights.functional.n_body import coulomb_forces, simulate_charges
from lightning_weights.functional.ponita import random_rotations


def start(systems, bodies, dim=3, seed=0, equal=False):
    """Return positions, velocities and charges."""
    generator = torch.Generator().manual_seed(seed)
    pos, vel = (torch.randn(systems, bodies, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    charges = torch.randint(0, 2, (systems, bodies), generator=generator).double() * 2 - 1
    return pos, vel, torch.ones_like(charges) if equal else charges


def summed_forces(pos, charges):
    """Return the forces of one system, pair by pair."""
    forces = np.zeros_like(pos)
    for i in range(len(pos)):
        for j in range(len(pos)):
            if i != j:
                apart = pos[i] - pos[j]
                forces[i] += charges[i] * charges[j] * apart / np.linalg.norm(apart) ** 3
    return forces


def energy(pos, vel, charges):
    apart = torch.stack([torch.pdist(system) for system in pos])
    i, j = np.triu_indices(pos.shape[1], 1)
    return vel.square().sum((1, 2)) / 2 + (charges[:, i] * charges[:, j] / apart).sum(1)


@settings(max_examples=25, deadline=None)
@given(bodies=st.integers(1, 7), dim=st.integers(1, 3), seed=st.integers(0, 99))
def test_forces_are_the_sum_over_pairs(bodies, dim, seed):
    pos, _, charges = start(3, bodies, dim, seed)
    forces = coulomb_forces(pos, charges * 1.5)
    for system in range(3):
        expected = summed_forces(pos[system].numpy(), charges[system].numpy() * 1.5)
        np.testing.assert_allclose(forces[system], expected, rtol=1e-9, atol=1e-9)


def test_charges_may_have_another_type():
    pos, _, charges = start(2, 3)
    for dtype in (torch.float32, torch.int64):
        assert torch.equal(coulomb_forces(pos, charges.to(dtype)), coulomb_forces(pos, charges))


def test_components_of_forces_are_cut():
    pos, _, charges = start(50, 4)
    whole = coulomb_forces(pos, charges)
    assert (whole.abs() > 0.5).any()
    assert torch.equal(coulomb_forces(pos, charges, 0.5), whole.clamp(-0.5, 0.5))


def test_the_way_agrees_with_scipys():
    pos, vel, charges = start(1, 4, equal=True)

    def derivative(_, state):
        x, v = state.reshape(2, 4, 3)
        return np.concatenate([v.ravel(), summed_forces(x, charges[0].numpy()).ravel()])

    state = torch.stack([pos, vel]).flatten().numpy()
    solved = solve_ivp(derivative, (0, 0.5), state, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    errors = []
    for dt in (0.005, 0.0025):
        ends = simulate_charges(pos, vel, charges, steps=round(0.5 / dt), dt=dt)
        errors.append(np.abs(torch.stack(ends).flatten().numpy() - solved).max())
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)  # a method of second order


def test_the_energy_stays():
    pos, vel, charges = start(20, 5, equal=True, seed=1)
    before = energy(pos, vel, charges)
    drifts = []
    for dt in (0.002, 0.001):
        ends = simulate_charges(pos, vel, charges, steps=round(1 / dt), dt=dt, max_force=None)
        drifts.append(((energy(*ends, charges) - before) / before).abs().max().item())
    assert drifts[1] < 1e-4
    assert drifts[0] / drifts[1] == pytest.approx(4, rel=0.1)


def test_the_way_back_is_the_way_there():
    pos, vel, charges = start(10, 5)
    there = simulate_charges(pos, vel, charges, steps=200)
    assert not torch.allclose(there[0], pos, atol=0.1)
    back = simulate_charges(*there, charges, steps=200, dt=-0.001)
    turned = simulate_charges(there[0], -there[1], charges, steps=200)
    assert torch.allclose(back[0], pos, rtol=0, atol=1e-9)
    assert torch.allclose(torch.stack(turned), torch.stack([pos, -vel]), rtol=0, atol=1e-9)


def test_momentum_stays_and_rotations_go_along():
    pos, vel, charges = start(6, 5, seed=2)
    end, speeds = simulate_charges(pos, vel, charges, steps=100, max_force=None)
    assert torch.allclose(speeds.sum(1), vel.sum(1), rtol=0, atol=1e-9)
    rotation = random_rotations(1, 3, generator=torch.Generator().manual_seed(0))
    turned, _ = simulate_charges(pos @ rotation.mT, vel @ rotation.mT, charges, steps=100, max_force=None)
    assert torch.allclose(turned, end @ rotation.mT, rtol=0, atol=1e-9)


def test_steps_preserve_the_symplectic_form():
    """J the derivative of (x, v) after some steps by (x, v) before: J' Ω J = Ω."""
    pos, vel, charges = start(1, 3, dim=2, seed=3)
    state, h = torch.stack([pos[0], vel[0]]).flatten(), 1e-5
    shifted = torch.cat([state + h * torch.eye(12), state - h * torch.eye(12)]).reshape(24, 2, 3, 2).double()
    ends = simulate_charges(shifted[:, 0], shifted[:, 1], charges.expand(24, -1), steps=50, dt=0.01, max_force=None)
    after = torch.stack(ends, dim=1).reshape(2, 12, 12)
    jacobian = ((after[0] - after[1]) / (2 * h)).T
    form = torch.zeros(12, 12, dtype=torch.float64)
    form[:6, 6:] = torch.eye(6)
    form = form - form.T
    assert (jacobian - torch.eye(12)).abs().max() > 0.3
    assert torch.allclose(jacobian.T @ form @ jacobian, form, rtol=0, atol=1e-6)


def test_parts_and_steps_can_be_taken_one_by_one(monkeypatch):
    pos, vel, charges = start(7, 4)
    kept = pos.clone(), vel.clone()
    whole = simulate_charges(pos, vel, charges, steps=30)
    monkeypatch.setattr(n_body, "CHUNK", 3)
    halves = simulate_charges(*simulate_charges(pos, vel, charges, steps=10), charges, steps=20)
    assert torch.allclose(torch.stack(whole), torch.stack(halves), rtol=0, atol=1e-11)
    assert torch.equal(pos, kept[0])
    assert torch.equal(vel, kept[1])
    assert torch.equal(simulate_charges(pos, vel, charges, steps=0)[0], pos)
    single = simulate_charges(pos.float(), vel.float(), charges.float(), steps=30)
    assert single[0].dtype == torch.float32
    assert torch.allclose(single[0].double(), whole[0], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps is -1; allowed is a whole number in [0, inf)"),
        ({"dt": float("nan")}, "dt is nan; allowed is a finite number"),
        ({"max_force": 0.0}, "max_force is 0.0; allowed is a finite number in (0.0, inf)"),
        (
            {"charges": torch.ones(2, 3)},
            "the shapes (2, 4, 3), (2, 4, 3) and (2, 3); allowed are (systems, bodies, dim)",
        ),
        ({"vel": torch.ones(2, 4)}, "the shapes (2, 4, 3), (2, 4) and (2, 4); allowed are (systems, bodies, dim)"),
    ],
)
def test_bad_arguments(change, message):
    pos, vel, charges = start(2, 4)
    arguments = {"pos": pos, "vel": vel, "charges": charges, "steps": 1}
    with pytest.raises(ValueError, match=re.escape(message)):
        simulate_charges(**{**arguments, **change})
