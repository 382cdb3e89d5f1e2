"""A few samples of every class that was learned, kept for later."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.weight_align import class_quota, herd


class ExemplarMemory:
    r"""Keep exemplars of the classes learned so far, within a fixed budget.

    Every class has the same quota m, ⌊size / number of classes⌋ or ``per_class``, or all its samples if it has fewer.
    A class's exemplars are in order of priority: when classes arrive and the quota shrinks, each keeps its first m.
    Herding chooses greedily, for t = 1 … m, the sample that brings the mean of the chosen features closest to the mean
    of all features f of the class, each divided by its length:

    $$i_t = \arg\min_i \Big\| \mu - \tfrac{1}{t}\Big(f_i + \sum_{s<t} f_{i_s}\Big) \Big\|_2$$

    Inputs are stored as they are given, features are not.

    Args:
        size: Budget of all classes together, in samples. ``None``: ``per_class`` says how many.
        per_class: Samples per class, whatever the number of classes; needs ``size=None``.
        strategy: ``herding``, or ``random`` for a random order, the ablation.
        seed: Seed of the random order; herding draws nothing.

    Raises:
        ValueError: If both budgets are given or none, or an argument is out of range.

    Source: Rebuffi, Kolesnikov, Sperl, Lampert, 2017, arXiv:1611.07725 (iCaRL), algorithms 4 and 5.

    Examples:
        >>> import torch
        >>> memory = ExemplarMemory(size=4)
        >>> x, y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
        >>> memory.add(x, y, features=x)
        >>> len(memory), memory.tensors()[1].tolist()
        (4, [0, 0, 1, 1])
    """

    def __init__(
        self,
        size: int | None = 2000,
        per_class: int | None = None,
        strategy: Literal["herding", "random"] = "herding",
        seed: int = 0,
    ) -> None:
        if (size is None) == (per_class is None):
            raise ValueError(
                f"size is {size!r} and per_class is {per_class!r}; allowed is one of the two, with None for the other"
            )
        check_number(*(("size", size) if per_class is None else ("per_class", per_class)), low=1, whole=True)
        check_choice("strategy", strategy, ("herding", "random"))
        check_number("seed", seed, low=0, high=2**32, whole=True)
        self.size = size
        self.per_class = per_class
        self.strategy = strategy
        self.seed = seed
        self._inputs: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return sum(map(len, self._inputs.values()))

    @property
    def classes(self) -> list[int]:
        """Labels of the classes in memory, in order of arrival."""
        return list(self._inputs)

    def quota(self, num_classes: int) -> int:
        """Return how many samples a class may keep when there are ``num_classes``.

        Args:
            num_classes: Number of classes in all.

        Raises:
            ValueError: If ``size`` is too small for one sample per class.
        """
        return class_quota(self.size, num_classes) if self.per_class is None else self.per_class

    def add(self, inputs: Tensor, targets: Tensor, features: Tensor) -> None:
        """Reduce the classes in memory to the new quota and add those of ``targets``.

        Args:
            inputs: Samples of the new classes, shape (N, ...), without augmentation.
            targets: Their labels, shape (N,).
            features: What the backbone makes of them in eval mode, shape (N, D).

        Raises:
            ValueError: If sizes differ, features to herd are not finite, a class is in memory already, or the quota is
                0. The memory stays as it was.
        """
        if not len(inputs) == len(targets) == len(features):
            raise ValueError(
                f"there are {len(inputs)} inputs, {len(targets)} targets and {len(features)} rows of features; give "
                f"one of each per sample"
            )
        labels = targets.unique().tolist()
        known = sorted({*labels} & {*self._inputs})
        if known:
            raise ValueError(f"the classes {known} are in memory already: a class arrives once, with all its samples")
        quota = self.quota(len(self._inputs) + len(labels))
        content = {label: kept[:quota].clone() for label, kept in self._inputs.items()}
        for label in labels:
            rows = (targets == label).nonzero()[:, 0]
            order = self._order(label, features[rows], min(quota, len(rows)))
            content[label] = inputs[rows[order.to(rows.device)]].cpu()
        self._inputs = content

    def _order(self, label: int, features: Tensor, count: int) -> Tensor:
        if self.strategy == "herding":
            return herd(features, count)
        # a generator per class: the order must not depend on which classes came before
        generator = torch.Generator().manual_seed(self.seed + label)
        return torch.randperm(len(features), generator=generator)[:count]

    def exemplars(self, label: int) -> Tensor:
        """Return the inputs of one class, the most important first.

        Args:
            label: Its label.
        """
        return self._inputs[label]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all inputs, class by class, and their labels; two empty tensors if there are none."""
        if not self._inputs:
            return torch.empty(0), torch.empty(0, dtype=torch.long)
        labels = [torch.full((len(inputs),), label) for label, inputs in self._inputs.items()]
        return torch.cat(list(self._inputs.values())), torch.cat(labels)

    def state_dict(self) -> dict[str, Any]:
        """Return budget and content."""
        budget = {"size": self.size, "per_class": self.per_class, "strategy": self.strategy, "seed": self.seed}
        return {"budget": budget, "inputs": dict(self._inputs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state_dict: State of a memory with the same budget.

        Raises:
            ValueError: If the budget is another.
        """
        for name, saved in state_dict["budget"].items():
            if getattr(self, name) != saved:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but the memory was saved with {saved!r}; resume with the same"
                )
        self._inputs = dict(state_dict["inputs"])
