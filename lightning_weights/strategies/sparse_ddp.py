"""DDP that reduces the gradients of selected entries."""

from typing import Any

from torch import Tensor

from lightning_weights.functional.lift import gather_entries
from lightning_weights.strategies._compressed_ddp import CompressedDDPStrategy
from lightning_weights.strategies.gradient_reduction import GradientReduction


class SparseReduction(GradientReduction):
    """Averages the gradients of the entries that ``LIFTAdamW`` trains over processes, and no others.

    For a matrix with k chosen entries k numbers travel, in the order of the entries; which ones they are is known to
    all processes. All other entries of the gradient become zero. Whole gradients travel in the first step, unless
    entries were chosen before it, as ``LIFTFinetuning`` does, and in steps that choose by the gradient
    (``selector="gradient"``).

    It is made from an optimizer or several, of which one has to be a ``LIFTAdamW``, and `register` gives it to a
    wrapped model.

    Examples:
        >>> import torch
        >>> from lightning_weights.optimizers import LIFTAdamW
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> reduction = SparseReduction(LIFTAdamW([weight], budget_rank=None, density=0.5))
        >>> reduction.compress(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (torch.tensor([1, 2]),))
        tensor([2., 3.])
    """

    needs = "LIFTAdamW"
    method = "selection"

    def basis(self, optimizer: Any, param: Tensor) -> tuple[Any, ...]:
        """Return the indices of the chosen entries, or nothing before entries were chosen.

        Args:
            optimizer: The optimizer of the parameter.
            param: The parameter.
        """
        # asking for a selection would make one, for selector="gradient" of what this process alone has accumulated
        if "idx" not in optimizer.state.get(param, {}) or optimizer.wants_dense_gradient(param):
            return ()
        return (optimizer.selection(param),)

    def compress(self, gradient: Tensor, basis: tuple[Any, ...]) -> Tensor:
        """Return the gradients of the chosen entries.

        Args:
            gradient: A whole gradient.
            basis: The indices.
        """
        return gather_entries(gradient, *basis)

    def restore(self, gradient: Tensor, values: Tensor, basis: tuple[Any, ...]) -> None:
        """Write a gradient that is zero at all other entries.

        Args:
            gradient: Where to.
            values: The average at the chosen entries.
            basis: The indices.
        """
        gradient.zero_().put_(basis[0].long(), values)


class SparseDDPStrategy(CompressedDDPStrategy):
    """DDP for ``LIFTAdamW`` that sends the gradients of chosen entries alone: at a density of 5 % a twentieth.

    The result is that of DDP: entries that aren't chosen are not trained. What differs is what is seen between backward
    pass and step: the gradient is zero at all other entries, so that clipping by norm compares the norm of the chosen
    ones, as ``LIFTFinetuning(sparse_grads=True)`` does; both go together. New selections, with their moments, are taken
    from the first process, so that machines with other libraries agree. Logs ``weights/lift/sent_bytes`` of every step,
    and ``sent_share``, their share of what DDP sends.

    Takes the arguments of Lightning's ``DDPStrategy``, without ``ddp_comm_hook``. It is one of ``lightning.pytorch``;
    for a ``pytorch_lightning`` Trainer, for Fabric and for plain DDP there is `SparseReduction`.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", devices=2, strategy=SparseDDPStrategy())
    """

    key = "lift"
    reduction_class = SparseReduction
