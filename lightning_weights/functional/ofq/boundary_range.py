"""How wide the boundary range of confidence-guided annealing is, measured in optimizer updates."""

from __future__ import annotations

from torch import Tensor


def updates_per_range(boundary_range: float, step: Tensor, lr: float) -> float:
    r"""Return how many updates of the size of the learning rate fit into the boundary range.

    $$\frac{\mathrm{BR}}{\eta_u}, \qquad \eta_u = \frac{\eta n}{s} = \frac{\eta}{\Delta}$$

    Adam and its kin move a weight by about η per step, and so u by η_u. Where the ratio is small, the first update
    pushes a weight out of the range; where it is large, a weight that oscillates never leaves it.

    Args:
        boundary_range: BR, in quantization steps.
        step: Δ = s/n, one or several; their mean counts.
        lr: Learning rate η.

    Returns:
        The ratio, infinite where nothing moves.

    Source: the ratio decides in the measurements on the method's page; the boundary range is that of Liu, Liu & Cheng
    2023, arXiv:2302.02210.

    Examples:
        >>> import torch
        >>> round(updates_per_range(0.005, torch.tensor([0.1, 0.3]), lr=1e-4), 6)
        10.0
    """
    width = boundary_range * float(step.float().mean())
    return width / lr if lr else float("inf")
