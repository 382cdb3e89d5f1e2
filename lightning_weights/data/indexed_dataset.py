"""Data sets that tell which sample is which."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, default_collate

from lightning_weights.errors import check_number


class IndexedDataset(Dataset[Any]):
    """Put the index of every sample into it: in this data set, so that no two files share one.

    A sample that is a dict gets the entry ``key``; a tuple or list gets the index as its last part, anything else
    becomes a pair. Data sets that return whole batches (``__getitems__``) get a tensor of indices in the same place.

    Indices are those of the data set that is wrapped. Wrap what training sees as a whole: ``ConcatDataset`` inside,
    ``Subset``, samplers and the distribution over processes outside.

    Args:
        dataset: A map-style data set.
        key: Entry of samples that are dicts.
        start: Index of the first sample, for several wrapped data sets that are put together later.

    Raises:
        ValueError: If the data set can only be iterated, or numbers samples itself further inside.

    Examples:
        >>> from torch.utils.data import ConcatDataset
        >>> right, wrong = [{"x": 1.0}, {"x": 2.0}], [{"x": 3.0}]
        >>> IndexedDataset(ConcatDataset([right, wrong]))[2]
        {'x': 3.0, 'sample_id': 2}
    """

    def __init__(self, dataset: Any, key: str = "sample_id", start: int = 0) -> None:
        check_number("start", start, low=0, whole=True)
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        ):
            raise ValueError(
                f"dataset is a {type(dataset).__name__}, which has no indices: a sample needs the same id in every "
                f"epoch. Give a map-style data set, or put ids of your own into the samples"
            )
        if _is_indexed(dataset):
            raise ValueError(
                "dataset numbers its samples already, further inside: ids of two parts would be equal. Put one "
                "IndexedDataset around the concatenated data"
            )
        self.dataset = dataset
        self.key = key
        self.start = start

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._joined(self.dataset[index], self._number(index))

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the samples of these indices; loaders call it instead of fetching one by one."""
        numbers = [self._number(index) for index in indices]
        if not hasattr(self.dataset, "__getitems__"):
            samples = [self.dataset[index] for index in indices]
        else:
            samples = self.dataset.__getitems__(indices)
        if isinstance(samples, list):
            return [self._joined(sample, number) for sample, number in zip(samples, numbers, strict=True)]
        return self._joined(samples, torch.tensor(numbers))

    def _number(self, index: int) -> int:
        return self.start + int(index) + (len(self) if index < 0 else 0)

    def _joined(self, sample: Any, number: Any) -> Any:
        if isinstance(sample, Mapping):
            return {**sample, self.key: number}
        if type(sample) in (tuple, list):
            return (*sample, number)
        return sample, number


class CollateWithIds:
    """Collate samples with a function that knows nothing of ids, and put these back.

    Args:
        collate: Turns a list of samples, which are dicts, into a batch, which is one. ``None``: PyTorch's default.
        key: Entry of the ids.

    Examples:
        >>> import torch
        >>> collate = CollateWithIds(lambda samples: {"x": torch.tensor([sample["x"] for sample in samples])})
        >>> collate([{"x": 1, "sample_id": 7}, {"x": 2, "sample_id": 3}])
        {'x': tensor([1, 2]), 'sample_id': tensor([7, 3])}
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None = None, key: str = "sample_id") -> None:
        self.collate = default_collate if collate is None else collate
        self.key = key

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        """Return the batch.

        Raises:
            ValueError: If a sample has no id.
        """
        if any(self.key not in sample for sample in samples):
            raise ValueError(f"a sample has no {self.key!r}: put data.IndexedDataset around the data set")
        ids = torch.tensor([int(sample[self.key]) for sample in samples])
        rest = [{name: value for name, value in sample.items() if name != self.key} for sample in samples]
        return {**self.collate(rest), self.key: ids}


def _is_indexed(dataset: Any) -> bool:
    if isinstance(dataset, ConcatDataset):
        return any(map(_is_indexed, dataset.datasets))
    return isinstance(dataset, IndexedDataset) or (isinstance(dataset, Subset) and _is_indexed(dataset.dataset))
