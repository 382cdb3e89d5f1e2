"""MNIST-1D: short signals in the shapes of the ten digits, computed rather than downloaded."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lightning_weights.data.classification import ClassificationData
from lightning_weights.errors import MissingDependencyError, check_number


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Put python's and numpy's global generators back at the end: the package seeds them."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class MNIST1D(ClassificationData):
    """Serve MNIST-1D (Greydanus and Kobak, 2024, arXiv 2011.14439), ten classes of signals of 40 values.

    The signals are made by the package ``mnist1d`` from templates of the digits, which are padded, shifted, scaled,
    sheared and made noisy; four fifths are for training. Batches are (signals of shape (N, 1, 40), float32 with mean 0
    and variance 1; labels of shape (N,), int64).

    Args:
        batch_size: Signals per batch.
        num_samples: Signals in all, a multiple of 50 so that the classes and the parts come out even.
        validation_size: Training signals set aside for validation. 0: validation serves the test signals.
        seed: Seed of the signals and of the order of those for training; 42 gives the authors' data set.
        shuffle: Whether training signals come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> signals, labels = next(iter(MNIST1D(batch_size=8, num_samples=100).train_dataloader()))
        >>> signals.shape, labels.shape
        (torch.Size([8, 1, 40]), torch.Size([8]))
    """

    num_classes = 10

    def __init__(
        self,
        batch_size: int = 64,
        num_samples: int = 5000,
        validation_size: int = 0,
        seed: int = 42,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_number("num_samples", num_samples, low=50, whole=True)
        if num_samples % 50:
            raise ValueError(f"num_samples is {num_samples!r}; allowed is a multiple of 50")
        super().__init__(batch_size, validation_size, seed, shuffle, num_workers, drop_last)
        self.num_samples = num_samples
        self.save_hyperparameters()

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make the signals: those for training and their labels, those for the test and their labels.

        Raises:
            MissingDependencyError: If mnist1d isn't installed.
        """
        try:
            from mnist1d.data import get_dataset_args, make_dataset
        except ImportError as error:
            raise MissingDependencyError("mnist1d", "mnist1d", type(self).__name__) from error
        arguments = get_dataset_args()
        arguments.num_samples, arguments.seed = self.num_samples, self.seed
        with _global_generators_kept():
            made = make_dataset(arguments)
        train_x, test_x = (torch.from_numpy(made[part]).float()[:, None] for part in ("x", "x_test"))
        train_y, test_y = (torch.from_numpy(made[part]).long() for part in ("y", "y_test"))
        return train_x, train_y, test_x, test_y
