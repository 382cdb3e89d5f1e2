"""Which layers get the same input, and in which order they are reached."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_weights.modules.quantization.inputs import input_of
from lightning_weights.modules.quantization.targets import Target


class Group(NamedTuple):
    """Targets that get the same inputs: they share statistics, and are solved as one matrix.

    Attributes:
        targets: The targets.
        uses: How often each of them is called in one run.
    """

    targets: list[Target]
    uses: int

    @property
    def names(self) -> list[str]:
        """Names of the targets."""
        return [target.name for target in self.targets]

    @property
    def enough(self) -> int | None:
        """Number of inputs after which a run may end: 1, or any for layers that are called several times."""
        return 1 if self.uses == 1 else None


class Watch:
    """Notes which targets are called while it is open, and with which tensors.

    Args:
        targets: What to watch.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = list(targets)
        self._owners = {id(layer): index for index, target in enumerate(targets) for layer in target.layers}
        self._calls: dict[int, list[int]] = {}  # numbers of the tensors that went in
        self._reached: set[int] = set()
        self._tensors: list[tuple[weakref.ref[Tensor], int]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "Watch":
        for target in self.targets:
            for layer in target.layers:
                self._handles.append(layer.register_forward_pre_hook(self._note, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, index = input_of(args, kwargs), self._owners[id(layer)]
        self._calls.setdefault(index, []).append(self._number(x))
        if x.numel():  # an expert may be called with no token at all
            self._reached.add(index)

    def _number(self, x: Tensor) -> int:
        version = 0 if x.is_inference() else x._version  # changed in place it is another input
        for number in reversed(range(len(self._tensors))):
            known, known_version = self._tensors[number]
            if known() is x and known_version == version:
                return number
        self._tensors.append((weakref.ref(x), version))
        return len(self._tensors) - 1

    @property
    def reached(self) -> set[str]:
        """Names of the targets that were called with something."""
        return {self.targets[index].name for index in self._reached}

    def groups(self) -> list[Group]:
        """Return the targets that were reached, in order of their first call, grouped by what went into them.

        Convolutions share inputs only if they unfold them alike.
        """
        found: dict[Any, Group] = {}
        for index, calls in self._calls.items():
            if index not in self._reached:
                continue
            target = self.targets[index]
            key = (tuple(calls), _unfolding(target.layers[0]))
            found.setdefault(key, Group([], len(calls))).targets.append(target)
        return list(found.values())


def _unfolding(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups > 1:
        return id(layer)  # the rows of two grouped convolutions don't stack
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode


def find_groups(targets: Sequence[Target], run: Callable[[], Any]) -> list[Group]:
    """Run a network and return the groups of targets that it reached.

    Args:
        targets: Targets to look for.
        run: Runs the network on one batch.
    """
    with Watch(targets) as watch:
        run()
    return watch.groups()


def merge_groups(plans: Sequence[list[tuple[list[str], int]]], targets: Sequence[Target]) -> list[Group]:
    """Return one order of groups for all processes: that of the first, and what only others have reached.

    Args:
        plans: Names and uses of the groups of every process.
        targets: All targets.
    """
    by_name = {target.name: target for target in targets}
    seen: set[str] = set()
    merged = []
    for plan in plans:
        for names, uses in plan:
            new = [name for name in names if name not in seen]
            seen.update(new)
            if new:
                merged.append(Group([by_name[name] for name in new], uses))
    return merged
