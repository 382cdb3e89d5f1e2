"""Plain classification data held in memory: what every such data set shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert, get_worker_info

from lightning_weights.errors import check_number

Augmentation = Callable[[Tensor, torch.Generator | None], Tensor]


class BatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """Serve whole batches out of tensors: unsigned bytes become float32 in [0, 1], and inputs are augmented.

    A loader draws its order and the augmentation from one generator, so resuming restores both. In worker processes,
    which have copies of it, the worker's own generator is used: its seed is drawn from the loader's.

    Args:
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        augment: Turns a batch of inputs and a generator (``None``: the global one) into a batch of inputs.
        generator: The loader's generator.

    Examples:
        >>> import torch
        >>> x, y = BatchDataset(torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([3, 4])).__getitems__([1])
        >>> x, y
        (tensor([[1.]]), tensor([4]))
    """

    def __init__(
        self, x: Tensor, y: Tensor, augment: Augmentation | None = None, generator: torch.Generator | None = None
    ) -> None:
        self.x = x
        self.y = y
        self.augment = augment
        self.generator = generator

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the batch of these indices; loaders call it instead of fetching one by one."""
        rows = torch.as_tensor(indices)
        x = self.x[rows]
        if self.augment is not None:
            x = self.augment(x, self.generator if get_worker_info() is None else None)
        return (x.float() / 255 if x.dtype == torch.uint8 else x), self.y[rows]


class ClassificationData(LightningDataModule, ABC):
    """Base of data modules whose inputs and labels fit into memory; a subclass says how to load them.

    A subclass sets ``num_classes`` and defines ``load()``; it may set ``augment``, which changes training inputs only.
    Batches are (inputs of shape (N, ...); labels of shape (N,), int64). The loaders have generators of their own that
    go on from epoch to epoch, and nothing draws from the global ones.

    Args:
        batch_size: Samples per batch.
        validation_size: Training samples, drawn at random, that are set aside for validation. 0: none are, and
            validation serves the test samples.
        seed: Seed of the order of the training samples, of the augmentation and of the validation samples.
        shuffle: Whether training samples come in random order.
        num_workers: Processes per loader; 0 loads in the main process.
        drop_last: Whether a last training batch that is smaller than the others is left out.

    Raises:
        ValueError: If an argument is of another type or out of range.

    Examples:
        >>> import torch
        >>> class Halves(ClassificationData):
        ...     num_classes = 2
        ...
        ...     def load(self):
        ...         x = torch.linspace(0, 1, 100)[:, None]
        ...         return x, (x[:, 0] > 0.5).long(), x, (x[:, 0] > 0.5).long()
        >>> data = Halves(batch_size=10, validation_size=20)
        >>> len(data.train_dataloader()), len(data.val_dataloader()), len(data.test_dataloader())
        (8, 2, 10)
    """

    num_classes: int
    augment: Augmentation | None = None

    def __init__(
        self,
        batch_size: int = 128,
        validation_size: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("validation_size", validation_size, low=0, whole=True)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        check_number("num_workers", num_workers, low=0, whole=True)
        super().__init__()
        self.batch_size = batch_size
        self.validation_size = validation_size
        self.seed = seed
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._tensors: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._train: BatchDataset | None = None

    @abstractmethod
    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return training inputs and labels, test inputs and labels.

        Inputs may be unsigned bytes, which are served as float32 in [0, 1]; labels are int64 from 0 to
        ``num_classes - 1``. Called once.
        """

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `load` returns, checked and loaded once: all training inputs and labels, test inputs and labels.

        Inputs are as they lie in memory, possibly unsigned bytes; a `BatchDataset` serves them as float32.

        Raises:
            ValueError: If inputs and labels differ in number, or a label is not one of the classes.
        """
        if self._tensors is None:
            train_x, train_y, test_x, test_y = self.load()
            for part, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
                if len(x) != len(y) or len(y) == 0:
                    raise ValueError(
                        f"load() of {type(self).__name__} returned {len(x)} {part} inputs and {len(y)} labels;"
                        " allowed is the same number of both, at least 1"
                    )
                if y.min() < 0 or y.max() >= self.num_classes:
                    raise ValueError(
                        f"load() of {type(self).__name__} returned {part} labels from {y.min()} to {y.max()}; allowed"
                        f" are 0 to {self.num_classes - 1}: change num_classes, or number the classes from 0"
                    )
            self._tensors = train_x, train_y, test_x, test_y
        return self._tensors

    def setup(self, stage: str | None = None) -> None:
        """Load and split the data, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.

        Raises:
            ValueError: If ``validation_size`` leaves no sample to train on.
        """
        if self._train is not None:
            return
        x, y, *test = self.tensors()
        check_number("validation_size", self.validation_size, low=0, high=len(y), whole=True)
        # the loaders of later epochs go on drawing where the earlier ones stopped
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)
        validation = test
        if self.validation_size:
            # a generator of its own: the order of the training samples shall not depend on the split
            shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(self.seed))
            held = torch.zeros(len(y), dtype=torch.bool)
            held[shuffled[: self.validation_size]] = True
            validation = [x[held], y[held]]
            x, y = x[~held], y[~held]
        self._test = BatchDataset(*test)
        self._validation = BatchDataset(*validation)
        self._train = BatchDataset(x, y, self.augment, self._order)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the training samples."""
        self.setup()
        return self._loader(self._train, self._order, self.shuffle, self.drop_last)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the validation samples, in their order and without augmentation."""
        self.setup()
        return self._loader(self._validation, self._evaluation, False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the test samples, in their order and without augmentation."""
        self.setup()
        return self._loader(self._test, self._evaluation, False)

    def _loader(
        self, dataset: BatchDataset, generator: torch.Generator, shuffle: bool, drop_last: bool = False
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        # every iterator draws a seed for its workers: without a generator of its own it would be a global draw
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=default_convert,
            generator=generator,
        )
