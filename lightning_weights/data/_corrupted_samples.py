"""A data set whose inputs are corrupted, each by one of several corruptions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_weights.modules.corruption import Corruption


class CorruptedSamples(Dataset[Any]):
    """Corrupt the inputs of a data set; which corruption a sample gets, and how, depends on its index alone.

    Args:
        dataset: A map-style data set.
        corruptions: One or more; each gets a random share of the samples, as many as every other.
        first: Number of the first sample, for what is random.
        key: Place of the input in a sample: position in a tuple or name in a dict.
        value_range: Smallest and largest value of an input, which are the corruptions' 0 and 1.
    """

    def __init__(
        self,
        dataset: Any,
        corruptions: Sequence[Corruption],
        first: int,
        key: int | str,
        value_range: tuple[float, float],
    ) -> None:
        self.dataset = dataset
        self.corruptions = list(corruptions)
        self.first = first
        self.key = key
        self.low, self.high = value_range
        generator = torch.Generator().manual_seed(self.corruptions[0].seed)
        shuffled = torch.randperm(len(dataset), generator=generator)
        self.shares = torch.empty(len(dataset), dtype=torch.long)
        self.shares[shuffled] = torch.arange(len(dataset)) % len(self.corruptions)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        return self._one(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the samples of these indices; loaders call it instead of fetching one by one."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        samples = self.dataset.__getitems__(indices)
        order = [range(len(self))[index] for index in indices]
        if not isinstance(samples, list):
            return self._replaced(samples, self._corrupted(self._input(samples), order))
        return [self._one(sample, index) for sample, index in zip(samples, order, strict=True)]

    def _one(self, sample: Any, index: int) -> Any:
        return self._replaced(sample, self._corrupted(self._input(sample)[None], [index])[0])

    def _input(self, sample: Any) -> Tensor:
        try:
            value = sample[self.key]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"key is {self.key!r}, but a sample is a {type(sample).__name__} without such a part; allowed is the "
                f"position of the images in a tuple or list, or their name in a dict"
            ) from error
        if not isinstance(value, Tensor):
            raise ValueError(
                f"key is {self.key!r}, where a sample has a {type(value).__name__}; allowed is a tensor of floats: turn"
                f" images into tensors in the data set's transform"
            )
        return value

    def _replaced(self, sample: Any, value: Tensor) -> Any:
        if isinstance(sample, Mapping):
            return {**sample, self.key: value}
        parts = list(sample)
        parts[self.key] = value
        return type(sample)(*parts) if hasattr(sample, "_fields") else type(sample)(parts)

    def _corrupted(self, inputs: Tensor, order: list[int]) -> Tensor:
        unit = self._in_unit_range(inputs)
        out = torch.empty_like(unit)
        shares = self.shares[order]
        for share, corruption in enumerate(self.corruptions):
            rows = (shares == share).nonzero()[:, 0].tolist()
            if rows:
                out[rows] = corruption(unit[rows], [self.first + order[row] for row in rows])
        return out if unit is inputs else self.low + (self.high - self.low) * out

    def _in_unit_range(self, inputs: Tensor) -> Tensor:
        if (self.low, self.high) == (0, 1) or not inputs.is_floating_point():
            return inputs  # the corruption checks them
        if not (inputs.amin() >= self.low and inputs.amax() <= self.high):
            raise ValueError(
                f"inputs go from {float(inputs.amin()):g} to {float(inputs.amax()):g}; allowed is value_range, "
                f"[{self.low:g}, {self.high:g}]"
            )
        return (inputs - self.low) / (self.high - self.low)
