"""The rows of a fold, served like the training rows of the data that they come from."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from lightning_weights.data import BatchDataset


class FoldData:
    """Loaders of parts of the training data, with the batch size, order and workers of its own loader.

    Args:
        data: LightningDataModule with a training loader, or that loader.
        test: Loader of rows that no model is trained on. ``None``: the module's test loader.
        tested: Whether there shall be such rows.

    Raises:
        ValueError: If rows have no numbers, or the loader orders them in a way that can't be applied to some of them.
    """

    def __init__(self, data: Any, test: Any = None, tested: bool = True) -> None:
        self.test = test if tested else None
        if hasattr(data, "train_dataloader"):
            data.prepare_data()
            data.setup("fit")
            loader = data.train_dataloader()
            if test is None and tested:
                data.setup("test")
                self.test = data.test_dataloader()
        else:
            loader = data
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise ValueError(
                f"data gives a {type(loader).__name__}, which can't be divided into folds; allowed is a "
                f"LightningDataModule with one training loader over a map-style data set, or that loader itself: "
                f"DataLoader(dataset, batch_size, shuffle=True)"
            )
        sampler = loader.sampler
        partial = isinstance(sampler, RandomSampler) and (sampler.replacement or len(sampler) != len(loader.dataset))
        if type(sampler) not in (RandomSampler, SequentialSampler) or partial or loader.batch_size is None:
            raise ValueError(
                f"the training loader has a {type(sampler).__name__}{' that draws rows' if partial else ''}, which "
                f"would order rows of other folds, too; use shuffle=True or False with a batch_size"
            )
        if isinstance(self.test, (list, tuple)):
            raise ValueError(f"there are {len(self.test)} test loaders; give one as test")
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def training(self, rows: Tensor, seed: int) -> DataLoader[Any]:
        """Return a loader for training, whose order depends on the seed alone.

        Args:
            rows: Which rows.
            seed: Seed of their order, and of the augmentation of a `BatchDataset`.
        """
        shuffle = type(self.loader.sampler) is RandomSampler
        return self._loader(rows, torch.Generator().manual_seed(seed), shuffle, True)

    def evaluation(self, rows: Tensor) -> DataLoader[Any]:
        """Return a loader that serves rows in order, without the augmentation of a `BatchDataset`.

        Args:
            rows: Which rows.
        """
        return self._loader(rows, torch.Generator().manual_seed(0), False, False)

    def _loader(self, rows: Tensor, generator: torch.Generator, shuffle: bool, training: bool) -> DataLoader[Any]:
        dataset = self.loader.dataset
        if isinstance(dataset, BatchDataset):
            dataset = copy.copy(dataset)
            # one for all folds would begin a fold where the one before has stopped
            dataset.generator = generator
            dataset.augment = dataset.augment if training else None
        like = self.loader
        return DataLoader(
            Subset(dataset, rows.tolist()),
            batch_size=like.batch_size,
            shuffle=shuffle,
            drop_last=like.drop_last and training,
            num_workers=like.num_workers,
            collate_fn=like.collate_fn,
            pin_memory=like.pin_memory,
            worker_init_fn=like.worker_init_fn,
            generator=generator,
        )
