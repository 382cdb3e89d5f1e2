"""MixtureGrowth: where the blocks of a grown weight stand, what they are mixed with, and how fast they learn then."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number

COEFFICIENT_INITS = ("orthogonal", "scaled", "copy", "zero", "random", "none")
TEMPLATE_INITS = ("kaiming", "official")
TEMPLATE_SETS = ((0, 1, 0, 1), (0, 1, 1, 0))
GROWN = 2  # the phase after those of member 0 and member 1


def check_template_sets(template_sets: Sequence[int]) -> tuple[int, ...]:
    """Check which set of templates each block is mixed from, and return it as a tuple.

    Args:
        template_sets: A set, 0 or 1, for each of four blocks: the first member, the second, and the two between them.

    Raises:
        ValueError: If it is neither (0, 1, 0, 1) nor (0, 1, 1, 0).

    Examples:
        >>> check_template_sets([0, 1, 1, 0])
        (0, 1, 1, 0)
    """
    found = tuple(template_sets)
    if found not in TEMPLATE_SETS:
        raise ValueError(
            f"template_sets is {found}; allowed are (0, 1, 0, 1) and (0, 1, 1, 0): member 0 has set 0, member 1 has "
            f"set 1, and each set makes one more block"
        )
    return found


def block_layout(split_in: bool, split_out: bool, grouped: bool = False) -> tuple[tuple[int, ...], int]:
    r"""Return which block stands where in the grown weight.

    $$W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}, \qquad \begin{pmatrix} W_0 \\ W_1 \end{pmatrix}, \qquad
    \begin{pmatrix} W_0 & W_1 \end{pmatrix}$$

    Rows are outputs, columns inputs: the members are on the diagonal. The second form is that of a stem, whose inputs
    are data, and of grouped convolutions, where there is nothing between the groups of one member and of the other; the
    third is that of a head, whose outputs are classes.

    Args:
        split_in: Whether each member has half of the inputs.
        split_out: Whether each member has half of the outputs.
        grouped: Whether inputs and outputs meet within groups only.

    Returns:
        The blocks in reading order, and how many there are beside each other.

    Raises:
        ValueError: If neither inputs nor outputs are split, or those of groups are not both.

    Examples:
        >>> block_layout(True, True), block_layout(False, True), block_layout(True, False)
        (((0, 2, 3, 1), 2), ((0, 1), 1), ((0, 1), 2))
    """
    if not (split_in or split_out):
        raise ValueError(
            "split_in and split_out are False, so that there is nothing to grow; allowed is at least one of them"
        )
    if grouped and not (split_in and split_out):
        raise ValueError(
            f"split_in is {split_in} and split_out {split_out}; a convolution with groups, which must not straddle the "
            f"halves, allows True for both only"
        )
    if split_in and split_out and not grouped:
        return (0, 2, 3, 1), 2
    return (0, 1), 1 if split_out else 2


def initial_templates(
    count: int, shape: Sequence[int], init: str = "kaiming", generator: torch.Generator | None = None
) -> Tensor:
    r"""Draw a set of templates from a normal distribution.

    Args:
        count: K, number of templates.
        shape: Of a block: outputs, inputs, and a convolution's kernel.
        init: ``kaiming`` for the variance 2 / fan-in of a block; ``official`` for what the authors' code does, where
            the stacked templates count as one weight, so that the variance is smaller by the number of outputs.
        generator: Where the numbers come from. ``None``: the global generator.

    Raises:
        ValueError: If the initialisation is unknown.

    Examples:
        >>> initial_templates(2, (8, 4, 3, 3)).shape
        torch.Size([2, 8, 4, 3, 3])
    """
    check_choice("init", init, TEMPLATE_INITS)
    fan = math.prod(shape[1:]) * (shape[0] if init == "official" else 1)
    return torch.randn(count, *shape, generator=generator) * math.sqrt(2.0 / fan)


def initial_coefficients(blocks: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return orthonormal rows of factors, or orthonormal columns where there are more blocks than templates.

    Args:
        blocks: Q, number of blocks.
        count: K, number of templates of a set.
        generator: Where the numbers come from. ``None``: the global generator.

    Examples:
        >>> alpha = initial_coefficients(4, 6)
        >>> torch.allclose(alpha @ alpha.T, torch.eye(4), atol=1e-5)
        True
    """
    return torch.nn.init.orthogonal_(torch.empty(blocks, count), generator=generator)


def least_overlap(rows: Tensor) -> Tensor:
    r"""Return the unit vector v for which the sum of squared overlaps with some rows, ‖A v‖², is least.

    It is the last right singular vector; of the two signs it has the one whose largest entry is positive.

    Args:
        rows: A, of shape (rows, K).

    Examples:
        >>> least_overlap(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])).abs()
        tensor([0., 1., 0.])
    """
    vector: Tensor = torch.linalg.svd(rows.detach().double().cpu()).Vh[-1]
    vector = vector * vector[vector.abs().argmax()].sign()
    return vector.to(rows)


def new_coefficients(
    coefficients: Sequence[Tensor],
    init: str = "orthogonal",
    scale: float = 1.0,
    template_sets: Sequence[int] = (0, 1, 0, 1),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what the two blocks between the members are mixed with from the moment of growth on.

    Args:
        coefficients: α of the four blocks before it, of shape (K,) each.
        init: ``orthogonal`` leaves block 2 and gives block 3 the vector that overlaps least with the other three, c
            long; ``scaled`` is the same with a block 2 that is c long, too; ``copy`` takes those of the member of the
            same set, plus noise that is c long; ``zero`` makes the network the sum of its members; ``random`` draws
            between 0 and c; ``none`` leaves both.
        scale: c, at least 0.
        template_sets: Which set each block is mixed from.
        generator: Of ``copy`` and ``random``, on the CPU. ``None``: the global generator.

    Returns:
        Coefficients of block 2 and of block 3.

    Raises:
        ValueError: If an argument is not allowed.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251; ``scaled`` is ours.

    Examples:
        >>> alphas = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.ones(2), torch.ones(2)]
        >>> new_coefficients(alphas, "copy", scale=0.0)
        (tensor([1., 0.]), tensor([0., 2.]))
    """
    check_choice("coefficient_init", init, COEFFICIENT_INITS)
    check_number("coefficient_scale", scale, low=0.0)
    sets = check_template_sets(template_sets)
    first, second, third, last = (alpha.detach().clone() for alpha in coefficients)

    def drawn() -> Tensor:
        return torch.rand(len(first), generator=generator, dtype=torch.float64, device="cpu").to(first)

    if init in ("orthogonal", "scaled"):
        last = scale * least_overlap(torch.stack([first, second, third]))
        return (scale * third / third.norm() if init == "scaled" else third), last
    if init == "copy":
        noise = drawn()
        noise = scale * noise / noise.norm()
        return (first, second)[sets[2]] + noise, (first, second)[sets[3]] + noise
    if init == "zero":
        return torch.zeros_like(first), torch.zeros_like(first)
    if init == "random":
        return scale * drawn(), scale * drawn()
    return third, last


def planned_phase(epoch: int, member_epochs: Sequence[int]) -> int:
    """Return the phase of an epoch: 0 and 1 for the members in turn, 2 from growth on.

    Args:
        epoch: Epochs that are over.
        member_epochs: How many each member is trained for.

    Examples:
        >>> [planned_phase(epoch, (2, 1)) for epoch in range(4)]
        [0, 0, 1, 2]
    """
    return 0 if epoch < member_epochs[0] else 1 if epoch < sum(member_epochs) else GROWN


def joint_loss(first: Tensor, second: Tensor, weight: float = 0.1) -> Tensor:
    r"""Return the loss of both members, $(w\,\ell_0 + \ell_1) / 2$.

    Args:
        first: Loss of member 0, which is trained already.
        second: Loss of member 1.
        weight: w.

    Examples:
        >>> joint_loss(torch.tensor(2.0), torch.tensor(1.0))
        tensor(0.6000)
    """
    return (weight * first + second) / 2


def grown_learning_rate(
    epoch: int, epochs: int, lr: float = 1e-4, lr_min: float = 3e-5, cycles: int = 4, warmup: int = 1
) -> float:
    r"""Return the learning rate of an epoch after growth: cosines from a peak, which halves from cycle to cycle.

    $$\eta = \eta_{min} + (2^{-n} \eta_0 - \eta_{min}) \frac{1 + \cos(\pi p)}{2}$$

    with the place p in cycle n, from 0 to 1. A peak below the minimum is raised to it.

    Args:
        epoch: Epochs since growth.
        epochs: How many there are.
        lr: Peak of the first cycle.
        lr_min: Where cycles end.
        cycles: Number of cycles.
        warmup: Epochs that lead from the minimum to the peak, in the place of the first ones.

    Examples:
        >>> [round(grown_learning_rate(epoch, 4, 1.0, 0.0, cycles=2, warmup=1), 2) for epoch in range(4)]
        [0.0, 0.5, 0.5, 0.25]
    """
    if epoch < warmup:
        return lr_min + (lr - lr_min) * epoch / warmup
    cycle, place = divmod(epoch * cycles / epochs, 1.0)
    peak = max(lr / 2.0 ** int(cycle), lr_min)
    return lr_min + (peak - lr_min) * (1 + math.cos(math.pi * place)) / 2
