"""Which samples a batch holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler, Subset

from lightning_weights.data import IndexedDataset, OutOfFold

KEY = "sample_id"


class SampleNumbers:
    """Numbers of the samples of a loader's batches: those that batches hold, or those of a loader in fixed order.

    Numbers are those of the data set under all subsets, so that the parts of one data set have different ones.

    Args:
        loader: What batches come from.
        id_key: Key of the numbers in batches, or their place in those that are sequences. ``None``: found without.
    """

    def __init__(self, loader: Any, id_key: int | str | None = None) -> None:
        self.loader = loader
        self.id_key = id_key
        self._indexed, self._positions = _root(getattr(loader, "dataset", None))
        self._batches: list[Any] | None = None
        self._own_numbers = False

    def of(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the numbers of a batch, shape (samples,).

        Args:
            batch: The batch.
            batch_idx: Its place among those of this process.

        Raises:
            ValueError: If nothing tells them.
        """
        key = self._key(batch)
        if key is not None:
            found = _part(batch, key)
            if not isinstance(found, Tensor):
                raise ValueError(
                    f"id_key is {key!r}, and the batch has no tensor there, it {_describe(batch)}. Wrap the data in "
                    f"data.IndexedDataset, or give the place or key of the numbers as id_key"
                )
            self._own_numbers = self._indexed is None
            return found.reshape(-1).to("cpu", torch.int64)
        # what Lightning notes while it predicts
        seen = getattr(getattr(self.loader, "batch_sampler", None), "seen_batch_indices", None)
        return self._positions[torch.as_tensor((self._order() if seen is None else seen)[batch_idx])]

    def check_complete(self, found: OutOfFold) -> None:
        """Check that there are predictions of all samples of the loader.

        Args:
            found: What there is.

        Raises:
            ValueError: If samples are missing. Where batches bring numbers of their own, these are counted.
        """
        if self._positions is None:
            return
        samples = self._positions.unique()
        if self._own_numbers:
            if len(found.indices) != len(samples):
                raise ValueError(
                    f"the loader has {len(samples)} samples, and there are predictions of {len(found.indices)}: either "
                    f"two share a number, or limit_val_batches, limit_predict_batches or drop_last left some out"
                )
        else:
            found.check_complete(samples + (0 if self._indexed is None else self._indexed.start))

    def _key(self, batch: Any) -> int | str | None:
        if self.id_key is not None:
            return self.id_key
        if self._indexed is not None:
            return self._indexed.key if isinstance(batch, Mapping) else -1
        return KEY if isinstance(batch, Mapping) and KEY in batch else None

    def _order(self) -> list[Any]:
        if self._batches is None:
            batches = getattr(self.loader, "batch_sampler", None)
            sampler = getattr(batches, "sampler", None)
            fixed = type(sampler) is SequentialSampler or (
                isinstance(sampler, DistributedSampler) and not sampler.shuffle
            )
            if type(batches) is not BatchSampler or not fixed or self._positions is None:
                raise ValueError(
                    f"nothing tells which samples are in a batch: batches hold no numbers, and the order of a loader "
                    f"with a {type(sampler).__name__} is not known. Switch shuffling off, wrap the data in "
                    f"data.IndexedDataset, or give the place or key of the numbers as id_key"
                )
            self._batches = list(batches)
        return self._batches


def _root(dataset: Any) -> tuple[IndexedDataset | None, Tensor | None]:
    """Return the data set that numbers its samples, if there is one, and the number of every sample in the root."""
    if not hasattr(dataset, "__len__"):
        return (dataset if isinstance(dataset, IndexedDataset) else None), None
    positions = torch.arange(len(dataset))
    while isinstance(dataset, Subset):
        positions = torch.as_tensor(dataset.indices)[positions]
        dataset = dataset.dataset
    return (dataset if isinstance(dataset, IndexedDataset) else None), positions


def _part(batch: Any, key: int | str) -> Any:
    if isinstance(batch, Mapping):
        return batch.get(key)
    if isinstance(key, int) and isinstance(batch, Sequence) and -len(batch) <= key < len(batch):
        return batch[key]
    return None


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"has the keys {', '.join(map(str, batch))}"
    return f"has {len(batch)} parts" if isinstance(batch, Sequence) else f"is a {type(batch).__name__}"


def part_of_batch(batch: Any, key: int | str) -> Tensor | None:
    """Return a tensor in a batch, or ``None`` where there is none.

    Args:
        batch: A mapping or a sequence.
        key: Its key, or its place.
    """
    found = _part(batch, key)
    return found if isinstance(found, Tensor) else None
