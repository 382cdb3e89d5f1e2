"""scikit-learn's handwritten digits, which come with that package: all at once or as streams of tasks."""

import functools
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset

from lightning_weights.data.classification import ClassificationData
from lightning_weights.errors import MissingDependencyError, check_choice, check_number

IMAGES, PIXELS, CLASSES = 1797, 64, 10


@functools.cache
def _read() -> tuple[Any, Any]:
    """Return all images and labels; the file is text, and reading it takes longer than many trainings on it."""
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    return images, targets


def _load(test_size: int, seed: int, purpose: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images (N, 64) in [0, 1] and labels, test images and labels; the classes keep their shares."""
    try:
        from sklearn.model_selection import train_test_split

        images, targets = _read()
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "stacking", purpose) from error
    train_x, test_x, train_y, test_y = (
        torch.from_numpy(part)
        for part in train_test_split(images, targets, test_size=test_size, random_state=seed, stratify=targets)
    )
    return (train_x / 16).float(), train_y.long(), (test_x / 16).float(), test_y.long()


class Digits(ClassificationData):
    """Serve scikit-learn's 1797 handwritten digits of 8 x 8 pixels.

    Batches are (images of shape (N, 64) or (N, 1, 8, 8), float32 in [0, 1]; labels of shape (N,), int64).

    Args:
        batch_size: Images per batch.
        test_size: Images held out for the test, of 1797 in all, split so that the classes keep their shares.
        as_images: Whether images have the shape (1, 8, 8), for convolutions, instead of (64,).
        validation_size: Training images set aside for validation. 0: validation serves the test images.
        seed: Seed of the splits and the order of the training images.
        shuffle: Whether training images come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.
        image_size: Height and width; other than 8 pixels by bilinear interpolation.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> images, labels = next(iter(Digits(batch_size=8, as_images=True).train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([8, 1, 8, 8]), torch.Size([8]))
    """

    num_classes = CLASSES

    def __init__(
        self,
        batch_size: int = 32,
        test_size: int = 500,
        as_images: bool = False,
        validation_size: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
        image_size: int = 8,
    ) -> None:
        check_number("test_size", test_size, low=CLASSES, high=IMAGES - CLASSES + 1, whole=True)
        check_number("image_size", image_size, low=1, whole=True)
        super().__init__(batch_size, validation_size, seed, shuffle, num_workers, drop_last)
        self.test_size = test_size
        self.as_images = as_images
        self.image_size = image_size
        self.save_hyperparameters()

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the training images and labels, the test images and labels.

        Raises:
            MissingDependencyError: If scikit-learn isn't installed.
        """
        train_x, train_y, test_x, test_y = _load(self.test_size, self.seed, type(self).__name__)
        train_x, test_x = (self._sized(x) for x in (train_x, test_x))
        return train_x, train_y, test_x, test_y

    def _sized(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, 1, 8, 8)
        if self.image_size != 8:
            images = interpolate(images, size=(self.image_size, self.image_size), mode="bilinear")
        return images if self.as_images else images.flatten(1)


class _DigitTasks(LightningDataModule, ABC):
    """What the streams share: the split, the loaders and the choice of the task that is trained on.

    Nothing draws from the global random generators.
    """

    def __init__(
        self, num_tasks: int, batch_size: int, test_size: int, seed: int, shuffle: bool, num_workers: int
    ) -> None:
        for name, value, low, high in (
            ("num_tasks", num_tasks, 1, math.inf),
            ("batch_size", batch_size, 1, math.inf),
            ("test_size", test_size, CLASSES, IMAGES - CLASSES + 1),
            ("seed", seed, 0, 2**32),
            ("num_workers", num_workers, 0, math.inf),
        ):
            check_number(name, value, low=low, high=high, whole=True)
        super().__init__()
        self.num_tasks = num_tasks
        self.batch_size = batch_size
        self.test_size = test_size
        self.seed = seed
        self.shuffle = shuffle
        self.num_workers = num_workers
        self._task = 0
        self._train: list[TensorDataset] = []
        self._test: list[TensorDataset] = []

    @property
    def task(self) -> int:
        """Task that ``train_dataloader`` serves, from 0; set it before the loader is requested."""
        return self._task

    @task.setter
    def task(self, task: int) -> None:
        check_number("task", task, low=0, high=self.num_tasks, whole=True)
        self._task = task

    def setup(self, stage: str | None = None) -> None:
        """Split the images and make the tasks, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.

        Raises:
            MissingDependencyError: If scikit-learn isn't installed.
        """
        if self._train:
            return
        train_x, train_y, test_x, test_y = _load(self.test_size, self.seed, type(self).__name__)
        self._test = self._tasks(test_x, test_y)
        self._train = self._tasks(train_x, train_y)
        # the loaders of later epochs and tasks go on drawing where the earlier ones stopped
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader of the current `task`."""
        self.setup()
        return DataLoader(
            self._train[self.task],
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            num_workers=self.num_workers,
            generator=self._order,
        )

    def val_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        """Return one loader of held-out images per task, in the order of the tasks."""
        self.setup()
        # every iterator draws a seed for its workers: without a generator of their own it would be a global draw
        return [
            DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers, generator=self._evaluation)
            for dataset in self._test
        ]

    def test_dataloader(self) -> list[DataLoader[tuple[Tensor, ...]]]:
        """Return the loaders of `val_dataloader`: the split has two parts."""
        return self.val_dataloader()

    @abstractmethod
    def _tasks(self, images: Tensor, targets: Tensor) -> list[TensorDataset]:
        """Make one dataset per task from images (N, 64) and labels (N,)."""


class PermutedDigits(_DigitTasks):
    """Serve the same digits in every task, with the pixels in another order: the input changes, the labels stay.

    Task 0 has the pixels as they are, each later task its own fixed permutation, the same whatever ``num_tasks`` is.
    Batches are (images of shape (N, 64), float32 in [0, 1]; labels of shape (N,), int64). Validation and test serve the
    same held-out images, one loader per task.

    Args:
        num_tasks: Number of tasks, at least 1.
        batch_size: Images per batch.
        test_size: Images held out, of 1797 in all, split so that the classes keep their shares.
        seed: Seed of the split, the permutations and the order of the training images.
        shuffle: Whether training images come in random order.
        num_workers: Processes per loader; 0 loads in the main process.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> data = PermutedDigits(num_tasks=2, batch_size=8)
        >>> data.setup()
        >>> data.task = 1
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape, len(data.val_dataloader())
        (torch.Size([8, 64]), torch.Size([8]), 2)
    """

    def __init__(
        self,
        num_tasks: int = 3,
        batch_size: int = 32,
        test_size: int = 500,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(num_tasks, batch_size, test_size, seed, shuffle, num_workers)
        self.save_hyperparameters()

    def _tasks(self, images: Tensor, targets: Tensor) -> list[TensorDataset]:
        generator = torch.Generator().manual_seed(self.seed)
        orders = [torch.randperm(PIXELS, generator=generator) for _ in range(1, self.num_tasks)]
        return [TensorDataset(images[:, order], targets) for order in (torch.arange(PIXELS), *orders)]


class SplitDigits(_DigitTasks):
    """Serve other digits in every task, the classes dealt out in order: with 5 tasks 0 and 1, then 2 and 3, and so on.

    The labels stay 0 to 9, for one output layer of ten classes. Batches are (images of shape (N, 64), float32 in
    [0, 1]; labels of shape (N,), int64). Validation and test serve the same held-out images, one loader per task.

    Args:
        num_tasks: Number of tasks: 1, 2, 5 or 10.
        batch_size: Images per batch.
        test_size: Images held out in all tasks together, of 1797, split so that the classes keep their shares.
        seed: Seed of the split and the order of the training images.
        shuffle: Whether training images come in random order.
        num_workers: Processes per loader; 0 loads in the main process.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> data = SplitDigits(num_tasks=5)
        >>> data.setup()
        >>> data.task = 2
        >>> sorted(set(next(iter(data.train_dataloader()))[1].tolist()))
        [4, 5]
    """

    def __init__(
        self,
        num_tasks: int = 5,
        batch_size: int = 32,
        test_size: int = 500,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
    ) -> None:
        check_choice("num_tasks", num_tasks, [n for n in range(1, CLASSES + 1) if CLASSES % n == 0])
        super().__init__(num_tasks, batch_size, test_size, seed, shuffle, num_workers)
        self.save_hyperparameters()

    def _tasks(self, images: Tensor, targets: Tensor) -> list[TensorDataset]:
        owner = targets // (CLASSES // self.num_tasks)
        return [TensorDataset(images[owner == task], targets[owner == task]) for task in range(self.num_tasks)]
