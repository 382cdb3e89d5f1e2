"""DDP that reduces projected gradients."""

from typing import Any

from torch import Tensor

from lightning_weights.functional.gradient_projection import keep_projection
from lightning_weights.strategies._compressed_ddp import CompressedDDPStrategy
from lightning_weights.strategies.gradient_reduction import GradientReduction

ALIGNMENT = 64  # bytes


class LowRankReduction(GradientReduction):
    r"""Averages the projected gradients of ``GradNormLoRPAdamW`` over processes instead of whole ones.

    What the optimizer makes of a gradient D is its projection R = LᵀDRᵀ, and averages can be taken of these:

    $$\bar R = \frac{1}{n} \sum_i L^\top D_i$$

    so that p × b numbers travel for a matrix of a × b (from the right likewise, and p × p with both). In steps that
    make a projection the whole gradient does. In all others ``grad`` holds the average of R in its first rows and
    columns until the step, and zeros beside, which is as long as that of the projected gradients.

    It is made from an optimizer or several, of which one has to be a ``GradNormLoRPAdamW``, and `register` gives it to
    a wrapped model.

    Examples:
        >>> import torch
        >>> from lightning_weights.optimizers import GradNormLoRPAdamW
        >>> reduction = LowRankReduction(GradNormLoRPAdamW([torch.nn.Parameter(torch.zeros(4, 3))], rank=1))
        >>> reduction.compress(torch.ones(4, 3), (torch.eye(4)[:, :1], None))
        tensor([[1., 1., 1.]])
    """

    needs = "GradNormLoRPAdamW"
    method = "coming_projection"

    def basis(self, optimizer: Any, param: Tensor) -> tuple[Any, ...]:
        """Return the projection from the left and from the right, None for a side that isn't projected.

        Args:
            optimizer: The optimizer of the parameter.
            param: The parameter.
        """
        sides = optimizer.coming_projection(param)
        return () if all(side is None for side in sides) else tuple(sides)

    def compress(self, gradient: Tensor, basis: tuple[Any, ...]) -> Tensor:
        """Return the projected gradient.

        Args:
            gradient: D, (a, b).
            basis: L, (a, p), and (p, b), None for a side that is not projected.
        """
        left, right = basis
        values = _aligned(gradient)
        values = values if left is None else left.T @ values.to(left.dtype)
        return values if right is None else values.to(right.dtype) @ right.T

    def restore(self, gradient: Tensor, values: Tensor, basis: tuple[Any, ...]) -> None:
        """Write the projection, from which the optimizer goes on.

        Args:
            gradient: Where to, (a, b).
            values: The average of the projections, flat.
            basis: As for `compress`.
        """
        left, right = basis
        rows = gradient.shape[0] if left is None else left.shape[1]
        columns = gradient.shape[1] if right is None else right.shape[0]
        keep_projection(gradient, values.view(rows, columns))

    def announce(self, optimizer: Any, param: Tensor, short: bool) -> None:
        """Tell the optimizer whether a gradient comes projected.

        Args:
            optimizer: The optimizer of the parameter.
            param: The parameter.
            short: Whether it does.

        Raises:
            RuntimeError: If a projected gradient is there still, to which the next one would be added.
        """
        optimizer.expect_gradient(param, projected=short)


class LowRankDDPStrategy(CompressedDDPStrategy):
    """DDP for ``GradNormLoRPAdamW`` that sends p × b numbers for a matrix of a × b, in the place of the whole gradient.

    The result is that of DDP up to rounding: the optimizer projects gradients anyway, and where it makes a projection
    of a gradient, once every ``update_proj_gap`` steps, the whole gradient is sent. What differs is what is seen
    between backward pass and step: ``grad`` holds the projected gradient in its first rows and columns and zeros
    beside, so that clipping compares the norm, or bounds the entries, of projected gradients. New projections are
    taken from the first process, so that machines with other libraries agree. Logs
    ``weights/gradnorm_lorp/sent_bytes`` of every step, and ``sent_share``, their share of what DDP sends.

    Takes the arguments of Lightning's ``DDPStrategy``, without ``ddp_comm_hook``. It is one of ``lightning.pytorch``;
    for a ``pytorch_lightning`` Trainer, for Fabric and for plain DDP there is `LowRankReduction`.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", devices=2, strategy=LowRankDDPStrategy())
    """

    key = "gradnorm_lorp"
    reduction_class = LowRankReduction


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor at a place in memory of which matrix products make the same bits.

    Places in DDP's buckets change after the first step, and would after a resume.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
