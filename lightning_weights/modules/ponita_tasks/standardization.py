"""Mean and scale of training targets, which a network learns without."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

ITEMS_AT_ONCE = 64  # where a loader doesn't say


class Standardization(nn.Module):
    r"""Map targets y to (y - shift) / scale and back; both numbers are buffers that checkpoints keep.

    A shift is held as the sum of two numbers, so that large targets in float64, such as total energies, keep in
    float32 what is left of them.

    Args:
        size: Number of targets.

    Examples:
        >>> targets = Standardization()
        >>> targets.assign(torch.tensor([10.0]), torch.tensor([2.0]))
        >>> targets.normalized(torch.tensor([14.0])), targets.restored(torch.tensor([2.0]))
        (tensor([2.]), tensor([14.]))
    """

    shift: Tensor
    shift_rest: Tensor
    scale: Tensor
    known: Tensor

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("shift_rest", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("known", torch.tensor(False))

    def assign(self, shift: Tensor, scale: Tensor) -> None:
        """Set both.

        Args:
            shift: What is subtracted, (size,), float64 if digits matter.
            scale: What is divided by then, (size,).

        Raises:
            ValueError: If a scale is not positive, or a number not finite.
        """
        if not bool(((scale > 0) & scale.isfinite() & shift.isfinite()).all()):
            raise ValueError(
                f"training targets have shift {shift.tolist()} and scale {scale.tolist()}; allowed are finite numbers "
                f"and scales above 0: targets that are all equal can't be learnt"
            )
        self.shift.copy_(shift)
        self.shift_rest.copy_(shift.double() - self.shift.cpu().double())
        self.scale.copy_(scale)
        self.known.fill_(True)

    def normalized(self, targets: Tensor) -> Tensor:
        """Return targets as a network learns them, in the buffers' type.

        Args:
            targets: (..., size), in data units.
        """
        return ((targets - self.shift - self.shift_rest) / self.scale).to(self.scale.dtype)

    def restored(self, values: Tensor) -> Tensor:
        """Return what a network says in data units.

        Args:
            values: (..., size).
        """
        return values * self.scale + self.shift_rest + self.shift


def in_order(loader: Any) -> DataLoader[Any]:
    """Return a loader of the same data from first to last, which leaves all random generators alone.

    Args:
        loader: The loader of a training.

    Raises:
        ValueError: If it is something else than a DataLoader of a dataset with a length.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f"the training data is a {type(loader).__name__} whose length or items are not known, so that mean and "
            f"scale of its targets can't be found; call module.standardize(batches) before the fit"
        )
    whole = loader.batch_size is None and loader.batch_sampler is None  # a dataset of batches
    size = None if whole else loader.batch_size or ITEMS_AT_ONCE
    # without a generator of its own, a loader draws a seed for workers
    return DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn, generator=torch.Generator())
