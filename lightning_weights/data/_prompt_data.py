"""What data modules of prompts share: batches of columns, and loaders that resume."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_weights.errors import check_number

Row = dict[str, Any]


class Rows(Dataset[Row]):
    """Serve rows of columns."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Turn rows into a batch, a dict of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}


class PromptData(LightningDataModule, ABC):
    """Base of the data modules of prompts: a subclass says how to make the rows of each part.

    The loaders have generators of their own that go on from epoch to epoch, and nothing draws from the global ones.
    """

    def __init__(self, sizes: tuple[int, int, int], batch_size: int, val_batch_size: int, seed: int) -> None:
        for name, size in zip(("train_size", "validation_size", "test_size"), sizes, strict=True):
            check_number(name, size, low=1, whole=True)
        check_number("batch_size", batch_size, low=1, whole=True)
        check_number("val_batch_size", val_batch_size, low=1, whole=True)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        super().__init__()
        self.sizes = sizes
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.seed = seed
        self._parts: list[Rows] | None = None

    @abstractmethod
    def rows(self, count: int, generator: torch.Generator) -> list[Row]:
        """Return ``count`` different rows with a ``prompt`` and other columns; called once, for all parts."""

    def setup(self, stage: str | None = None) -> None:
        """Make the rows, once for all stages; loaders requested before do it themselves.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        if self._parts is not None:
            return
        rows = self.rows(sum(self.sizes), torch.Generator().manual_seed(self.seed))
        train, validation, _ = self.sizes
        bounds = (0, train, train + validation, len(rows))
        self._parts = [Rows(rows[start:stop]) for start, stop in pairwise(bounds)]
        # the loaders of later epochs go on drawing where the earlier ones stopped
        self._order = torch.Generator().manual_seed(self.seed)
        self._evaluation = torch.Generator().manual_seed(self.seed)

    def train_dataloader(self) -> DataLoader[Row]:
        """Return the loader of training prompts, shuffled; a last smaller batch is left out."""
        return self._loader(0)

    def val_dataloader(self) -> DataLoader[Row]:
        """Return the loader of validation prompts, in their order."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[Row]:
        """Return the loader of test prompts, in their order."""
        return self._loader(2)

    def _loader(self, part: int) -> DataLoader[Row]:
        self.setup()
        training = part == 0
        return DataLoader(
            self._parts[part],
            batch_size=self.batch_size if training else self.val_batch_size,
            shuffle=training,
            drop_last=training,
            collate_fn=columns,
            # every iterator draws a seed for its workers: without a generator of its own it would be a global draw
            generator=self._order if training else self._evaluation,
        )
