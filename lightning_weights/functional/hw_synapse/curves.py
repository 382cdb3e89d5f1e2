"""Measured curves: reading them, checking them, and fitting closed forms to them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import check_choice
from lightning_weights.kernels.pulse_update import rise

LARGEST_NU = 20.0  # of a fit: beyond, all but a twentieth of the pulses do nothing


class CurveFit(NamedTuple):
    """A closed form fitted to a measured curve.

    Attributes:
        nu: Non-linearity ν.
        g_start: Conductance before the first pulse.
        g_end: Conductance after the last one.
        n_states: Pulses from one to the other.
        error: Root of the mean squared deviation, as a share of the range.

    Examples:
        >>> fit_curve([0, 1, 2, 4], [1.0, 2.0, 3.0, 5.0], "linear").n_states
        4
    """

    nu: float
    g_start: float
    g_end: float
    n_states: int
    error: float


def fit_curve(n: Sequence[float] | Tensor, g: Sequence[float] | Tensor, kind: str = "soft") -> CurveFit:
    """Fit ``linear``, ``soft`` or ``exp`` to a measured curve by least squares.

    The number of states is that of the pulses measured. For every ν the two ends of the range follow from a linear
    fit; ν itself is found on a grid and refined by sections. A falling curve is fitted as depression.

    Args:
        n: Numbers of pulses, ascending.
        g: Conductance after each.
        kind: ``linear``, ``soft`` or ``exp``.

    Returns:
        The fit.

    Raises:
        ValueError: If there are fewer than four points, numbers of pulses do not ascend, or the kind is another.

    Examples:
        >>> n = torch.arange(33)
        >>> g = 2.0 + 3.0 * rise(torch.zeros(33, dtype=torch.float64), n, "soft", 1.5, 32)
        >>> fit = fit_curve(n, g)
        >>> round(fit.nu, 4), round(fit.g_start, 4), round(fit.g_end, 4), fit.n_states
        (1.5, 2.0, 5.0, 32)
    """
    check_choice("kind", kind, ("linear", "soft", "exp"))
    pulses, conductance = (torch.as_tensor(values, dtype=torch.float64) for values in (n, g))
    if pulses.dim() != 1 or pulses.shape != conductance.shape or len(pulses) < 4:
        raise ValueError(
            f"n and g have the shapes {tuple(pulses.shape)} and {tuple(conductance.shape)}; allowed are two lists of "
            f"equal length from 4"
        )
    if not bool((pulses.diff() > 0).all()) or not bool(conductance.isfinite().all()):
        raise ValueError("n has to ascend and g has to be finite; sort the measurement and leave out what failed")
    pulses = pulses - pulses[0]
    states = float(pulses[-1])

    def fit(nu: float) -> tuple[float, Tensor]:
        curve = rise(torch.zeros_like(pulses), pulses, kind, nu, states)
        matrix = torch.stack([1.0 - curve, curve], dim=1)
        ends = torch.linalg.lstsq(matrix, conductance[:, None]).solution[:, 0]
        return float((matrix @ ends - conductance).square().mean()), ends

    nu = 0.0 if kind == "linear" else _minimum(lambda nu: fit(nu)[0])
    square, ends = fit(nu)
    span = float((ends[1] - ends[0]).abs())
    return CurveFit(nu, float(ends[0]), float(ends[1]), round(states), square**0.5 / span if span else 0.0)


def _minimum(loss: Callable[[float], float]) -> float:
    """Find the minimum on [0, LARGEST_NU]: the best of a grid, then golden sections around it."""
    grid = [LARGEST_NU * i / 80 for i in range(81)]
    best: int = min(range(len(grid)), key=lambda i: loss(grid[i]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    ratio = (5.0**0.5 - 1.0) / 2.0
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return (low + high) / 2.0


def read_table(path: str | Path) -> Tensor:
    r"""Read measured curves: numbers of pulses, conductance after potentiation, and after depression.

    Args:
        path: A CSV file with the columns ``n``, ``ltp`` and ``ltd``, named in its first line. The curve of potentiation
            ascends from the lowest conductance, that of depression descends from the highest one.

    Returns:
        float64 tensor of three rows: pulses, from 0; states of a device that rises, from 0 to 1; and of one that falls,
        as the distance from the highest state, from 0 to 1.

    Raises:
        ValueError: If a column is missing, a number cannot be read, or a curve is not strictly monotone.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "curve.csv")
        ...     _ = path.write_text("n,ltp,ltd\n0,1.0,3.0\n1,2.5,1.5\n2,3.0,1.0\n")
        ...     read_table(path)
        tensor([[0.0000, 1.0000, 2.0000],
                [0.0000, 0.7500, 1.0000],
                [0.0000, 0.7500, 1.0000]], dtype=torch.float64)
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    columns = []
    for name, sign in (("n", 1.0), ("ltp", 1.0), ("ltd", -1.0)):
        try:
            values = [sign * float(row[name]) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"table {str(path)!r} has a row without a number in the column {name!r} ({error}); needed is a CSV "
                f"file whose first line is n,ltp,ltd"
            ) from error
        columns.append(values)
    return checked_table(torch.tensor(columns, dtype=torch.float64), str(path))


def checked_table(table: Tensor, name: str) -> Tensor:
    """Return curves with pulses from 0 and states from 0 to 1.

    Args:
        table: Rows of pulses, of conductances of potentiation, and of depression with the sign turned.
        name: What to call it in messages.

    Raises:
        ValueError: If there are fewer than two points or a row is not strictly ascending.
    """
    if table.shape[1] < 2:
        raise ValueError(f"table {name!r} has {table.shape[1]} rows of numbers; allowed are two and more")
    for column, values in zip(("n", "ltp", "ltd"), table, strict=True):
        wrong = (~(values.diff() > 0)).nonzero()
        if len(wrong):
            at = int(wrong[0, 0]) + 1
            raise ValueError(
                f"table {name!r} is not monotone: {column} goes from {abs(float(values[at - 1])):g} to "
                f"{abs(float(values[at])):g} in row {at + 1} of the numbers; average repeated measurements, or smooth "
                f"the curve, so that every pulse changes the conductance"
            )
    pulses = table[:1] - table[:1, :1]
    return torch.cat([pulses, (table[1:] - table[1:, :1]) / (table[1:, -1:] - table[1:, :1])])
