"""Classes of a data set that arrive in groups, with a memory of those that came before."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_weights.data.classification import BatchDataset, ClassificationData
from lightning_weights.data.exemplar_memory import ExemplarMemory
from lightning_weights.errors import check_number


class ClassIncremental(ClassificationData):
    """Serve the classes of a data set in groups that arrive one after another, together with exemplars of earlier ones.

    At ``step`` b the training loader holds all samples of group b and what is in ``memory``, shuffled together, and
    validation and test the test samples of all classes seen so far. Classes are numbered in order of arrival: labels
    below ``num_old`` are old ones. Nothing draws from the global random generators.

    After each step fill the memory with ``remember``; ``runners.IncrementalRunner`` does, and moves ``step`` along.

    Args:
        source: Where the samples come from; its augmentation is used, its loaders are not.
        increments: Number of classes in each group. Classes that are left over never arrive.
        memory: Keeps exemplars of the classes of finished steps.
        class_order_seed: Seed of the order of arrival, a permutation by numpy. ``None``: the order of the labels.
        class_order: The labels in order of arrival, instead of a random order.
        batch_size: Samples per batch.
        seed: Seed of the order of the training samples and of the augmentation; step b takes ``seed + b``.
        num_workers: Processes per loader; 0 loads in the main process.

    Raises:
        ValueError: If the groups don't fit the classes of the source, or an argument is out of range.

    Examples:
        >>> from lightning_weights.data import Digits, ExemplarMemory
        >>> data = ClassIncremental(Digits(), increments=[2] * 5, memory=ExemplarMemory(size=50))
        >>> data.classes, data.num_old, data.num_new
        ([4, 2, 7, 6, 0, 3, 5, 8, 9, 1], 0, 2)
        >>> sorted(set(data.new_samples()[1].tolist()))
        [0, 1]
    """

    def __init__(
        self,
        source: ClassificationData,
        increments: list[int],
        memory: ExemplarMemory,
        class_order_seed: int | None = 1993,
        class_order: list[int] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        if isinstance(increments, str) or not isinstance(increments, Sequence) or not increments:
            raise ValueError(f"increments is {increments!r}; allowed is a list of whole numbers from 1")
        increments = list(increments)
        for group, size in enumerate(increments):
            check_number(f"increments[{group}]", size, low=1, whole=True)
        if class_order_seed is not None:
            check_number("class_order_seed", class_order_seed, low=0, high=2**32, whole=True)
        class_order = None if class_order is None else list(class_order)
        super().__init__(batch_size=batch_size, seed=seed, num_workers=num_workers)
        self.save_hyperparameters(ignore=["source", "memory"])
        self.source = source
        self.increments = increments
        self.memory = memory
        self.num_classes = sum(increments)
        self.augment = source.augment
        self.classes = _order(source.num_classes, class_order_seed, class_order)[: self.num_classes]
        if len(self.classes) < self.num_classes:
            raise ValueError(
                f"increments {increments} need {self.num_classes} classes, but there are {len(self.classes)}; take "
                f"smaller or fewer groups"
            )
        if source.validation_size:
            raise ValueError(
                f"source has validation_size={source.validation_size}, but validation serves the test samples of the "
                f"classes seen so far; leave it at 0"
            )
        self._evaluation = torch.Generator().manual_seed(seed)
        self.step = 0

    @property
    def step(self) -> int:
        """Group that is learned, from 0; setting it starts the order of the training samples anew."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        check_number("step", step, low=0, high=len(self.increments), whole=True)
        self._step = step
        self._order = torch.Generator().manual_seed(self.seed + step)

    @property
    def num_old(self) -> int:
        """Number of classes of earlier groups."""
        return sum(self.increments[: self.step])

    @property
    def num_new(self) -> int:
        """Number of classes of the current group."""
        return self.increments[self.step]

    def load(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the source's samples of the classes that arrive, numbered in order of arrival."""
        train_x, train_y, test_x, test_y = self.source.tensors()
        arrival = torch.full((self.source.num_classes,), -1)
        arrival[self.classes] = torch.arange(self.num_classes)
        parts = []
        for part, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
            lacking = sorted({*self.classes} - {*y.unique().tolist()})
            if lacking:
                raise ValueError(
                    f"the source has no {part} samples of the labels {lacking}; number the classes without gaps, or "
                    f"leave these out with class_order"
                )
            arrives = arrival[y] >= 0
            parts += [x[arrives], arrival[y[arrives]]]
        return parts[0], parts[1], parts[2], parts[3]

    def setup(self, stage: str | None = None) -> None:
        """Load the data, once for all steps and stages.

        Args:
            stage: Ignored; the data is the same in every stage.
        """
        self.tensors()

    def new_samples(self) -> tuple[Tensor, Tensor]:
        """Return the training samples of the current group, as they lie in memory, and their labels."""
        x, y, *_ = self.tensors()
        new = (y >= self.num_old) & (y < self.num_old + self.num_new)
        return x[new], y[new]

    def remember(self, features: Tensor) -> None:
        """Put exemplars of the current group into the memory, once it is learned.

        Args:
            features: What the backbone makes, in eval mode, of the samples of ``new_dataloader``, shape (N, D).

        Raises:
            ValueError: If the memory doesn't hold the classes of all earlier groups.
        """
        self._check_memory()
        self.memory.add(*self.new_samples(), features)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the new classes' samples and the memory.

        Raises:
            ValueError: If the memory doesn't hold the classes of all earlier groups.
        """
        self._check_memory()
        x, y = self.new_samples()
        if self.num_old:
            kept_x, kept_y = self.memory.tensors()
            x, y = torch.cat([x, kept_x]), torch.cat([y, kept_y])
        return self._loader(BatchDataset(x, y, self.augment, self._order), self._order, self.shuffle)

    def new_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the new classes' training samples in their order, without augmentation."""
        return self._loader(BatchDataset(*self.new_samples()), self._evaluation, False)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of the test samples of all classes seen so far; labels below ``num_old`` are old ones."""
        *_, x, y = self.tensors()
        seen = y < self.num_old + self.num_new
        return self._loader(BatchDataset(x[seen], y[seen]), self._evaluation, False)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Return the loader of `val_dataloader`: there are two parts, training and test."""
        return self.val_dataloader()

    def _check_memory(self) -> None:
        if self.memory.classes != list(range(self.num_old)):
            raise ValueError(
                f"the memory holds the classes {self.memory.classes}, but step {self.step} follows {self.num_old} "
                f"classes; call remember() once after every step, and resume with the memory of the same run"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the step, the groups and the memory."""
        groups = {"increments": self.increments, "classes": self.classes}
        return {"step": self.step, "groups": groups, "memory": self.memory.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state_dict: State of the same groups of classes.

        Raises:
            ValueError: If the groups are others.
        """
        for name, saved in state_dict["groups"].items():
            if getattr(self, name) != saved:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the checkpoint has {saved}; resume with the same groups"
                )
        self.memory.load_state_dict(state_dict["memory"])
        self.step = state_dict["step"]


def _order(num_classes: int, seed: int | None, given: list[int] | None) -> list[int]:
    """Return the labels in order of arrival."""
    if given is None:
        return (
            list(range(num_classes)) if seed is None else np.random.RandomState(seed).permutation(num_classes).tolist()
        )
    again = sorted(label for label, group in itertools.groupby(sorted(given)) if len(list(group)) > 1)
    if again:
        raise ValueError(f"class_order names the labels {again} again: a class arrives once")
    strange = [label for label in given if not 0 <= label < num_classes]
    if strange:
        raise ValueError(f"class_order has the labels {strange}; allowed are 0 to {num_classes - 1}")
    return given
