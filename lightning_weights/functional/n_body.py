"""Charged particles in free space: forces and a symplectic integrator, for many systems at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_weights.errors import check_number

CHUNK = 2048  # systems integrated together: few enough for the cache, enough to hide the calls


def coulomb_forces(pos: Tensor, charges: Tensor, max_force: float | None = None) -> Tensor:
    r"""Return the force on every particle.

    $$F_i = \sum_{j \ne i} q_i q_j \frac{x_i - x_j}{\|x_i - x_j\|^3}$$

    Equal charges repel each other.

    Args:
        pos: Positions of shape (systems, bodies, dim).
        charges: Charges of shape (systems, bodies).
        max_force: Largest size of each component of a force, to which larger ones are cut; ``None`` for no limit.

    Returns:
        Forces of the shape of ``pos``.

    Raises:
        ValueError: If the shapes don't fit, or ``max_force`` is not positive.

    Examples:
        >>> coulomb_forces(torch.tensor([[[0.0, 0.0], [2.0, 0.0]]]), torch.tensor([[1.0, -1.0]]))
        tensor([[[ 0.2500,  0.0000],
                 [-0.2500,  0.0000]]])
    """
    _check(pos, pos, charges, max_force)
    forces = torch.empty(pos.shape[2], pos.shape[1], pos.shape[0], dtype=pos.dtype, device=pos.device)
    _force_function(charges, forces, max_force)(pos.permute(2, 1, 0).contiguous())
    return forces.permute(2, 1, 0).contiguous()


def simulate_charges(
    pos: Tensor, vel: Tensor, charges: Tensor, *, steps: int, dt: float = 0.001, max_force: float | None = 100.0
) -> tuple[Tensor, Tensor]:
    r"""Let charged particles of mass 1 move for a number of steps of the leapfrog method.

    $$v_{t+1/2} = v_t + \tfrac{\Delta t}{2} F(x_t), \quad x_{t+1} = x_t + \Delta t\, v_{t+1/2}, \quad
    v_{t+1} = v_{t+1/2} + \tfrac{\Delta t}{2} F(x_{t+1})$$

    Positions and velocities belong to the same time, the way back is the same as the way there, and the energy stays
    near its value as long as no force is cut.

    Args:
        pos: Positions of shape (systems, bodies, dim).
        vel: Velocities of the same shape.
        charges: Charges of shape (systems, bodies).
        steps: Number of steps.
        dt: Length Δt of a step; a negative one goes back in time.
        max_force: Largest size of each component of a force, to which larger ones are cut; ``None`` for no limit.

    Returns:
        Positions and velocities after the last step; the arguments are left alone.

    Raises:
        ValueError: If the shapes don't fit, or a number is out of range.

    Examples:
        >>> rest = torch.zeros(1, 2, 1)
        >>> pos, vel = simulate_charges(torch.tensor([[[0.0], [1.0]]]), rest, torch.ones(1, 2), steps=2, dt=0.1)
        >>> pos.flatten()
        tensor([-0.0198,  1.0198])
    """
    _check(pos, vel, charges, max_force)
    check_number("steps", steps, low=0, whole=True)
    check_number("dt", dt, low=-math.inf)
    parts = zip(pos.split(CHUNK), vel.split(CHUNK), charges.split(CHUNK), strict=True)
    ends = [_leapfrog(*part, steps, dt, max_force) for part in parts]
    return torch.cat([end[0] for end in ends]), torch.cat([end[1] for end in ends])


def _leapfrog(
    pos: Tensor, vel: Tensor, charges: Tensor, steps: int, dt: float, max_force: float | None
) -> tuple[Tensor, Tensor]:
    """Integrate one chunk, with the systems along the last dimension, in place."""
    x, v = (values.permute(2, 1, 0).clone(memory_format=torch.contiguous_format) for values in (pos, vel))
    forces = torch.empty_like(x)
    update = _force_function(charges, forces, max_force)
    update(x)
    # neighbouring half steps of the velocity are taken in one: half a step first, and half a step back at the end
    v.add_(forces, alpha=dt / 2)
    for _ in range(steps):
        x.add_(v, alpha=dt)
        update(x)
        v.add_(forces, alpha=dt)
    v.add_(forces, alpha=-dt / 2)
    return x.permute(2, 1, 0).contiguous(), v.permute(2, 1, 0).contiguous()


def _force_function(charges: Tensor, forces: Tensor, max_force: float | None) -> Callable[[Tensor], None]:
    """Return a function of positions (dim, bodies, systems) that writes into ``forces``, of the same shape.

    Body i meets body i + k (mod bodies) for k up to half of them, so that each pair is computed once; where k is
    exactly half, pairs appear twice and count half.
    """
    bodies = forces.shape[1]
    q = charges.T.to(forces.dtype).contiguous()
    products = [q * q.roll(-k, 0) * (0.5 if 2 * k == bodies else 1.0) for k in range(1, bodies // 2 + 1)]
    difference = torch.empty_like(forces)
    squared, inverse, strength = torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)

    def update(x: Tensor) -> None:
        forces.zero_()
        for k, product in enumerate(products, 1):
            torch.sub(x[:, : bodies - k], x[:, k:], out=difference[:, : bodies - k])
            torch.sub(x[:, bodies - k :], x[:, :k], out=difference[:, bodies - k :])
            torch.mul(difference[0], difference[0], out=squared)
            for component in difference[1:]:
                squared.addcmul_(component, component)
            torch.rsqrt(squared, out=inverse)
            torch.mul(inverse, product, out=strength)
            strength.mul_(inverse.mul_(inverse))
            difference.mul_(strength)
            forces.add_(difference)
            forces[:, k:].sub_(difference[:, : bodies - k])
            forces[:, :k].sub_(difference[:, bodies - k :])
        if max_force is not None:
            forces.clamp_(-max_force, max_force)

    return update


def _check(pos: Tensor, vel: Tensor, charges: Tensor, max_force: float | None) -> None:
    if pos.dim() != 3 or vel.shape != pos.shape or charges.shape != pos.shape[:2]:
        raise ValueError(
            f"pos, vel and charges have the shapes {tuple(pos.shape)}, {tuple(vel.shape)} and {tuple(charges.shape)}; "
            f"allowed are (systems, bodies, dim) twice and (systems, bodies)"
        )
    if max_force is not None:
        check_number("max_force", max_force, low=0.0, low_allowed=False)
