"""Which patches a layer has, and what must not happen to it meanwhile."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Hold:
    """The claim of an applied patch on layers, until it is released or forgotten.

    Args:
        parts: The layers, whose training is refused unless it is allowed.
        tensors: Those of their tensors that are patched.
        digests: What tells the patch's signatures apart.
        allow_train: Whether the layers may be trained.
    """

    def __init__(
        self, parts: Iterable[nn.Module], tensors: Iterable[Tensor], digests: Iterable[str], allow_train: bool
    ) -> None:
        self.parts, self.digests, self.allow_train = list(parts), set(digests), allow_train
        self._versions = {tensor: tensor._version for tensor in tensors}
        self._guards: list[RemovableHandle] = []
        for part in self.parts:
            _HOLDS.setdefault(part, []).append(weakref.ref(self))
            if not allow_train:
                self._guards.append(part.register_forward_pre_hook(_refuse_training))

    @property
    def is_latest(self) -> bool:
        """Whether no layer was patched by another one afterwards."""
        return all(holds_of(part)[-1] is self for part in self.parts)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write patched or clean weights, which no hold takes for somebody else's."""
        before = {tensor: tensor._version for tensor in self._versions}
        try:
            yield
        finally:
            for hold in dict.fromkeys(hold for part in self.parts for hold in holds_of(part)):
                for tensor in before.keys() & hold._versions.keys():
                    hold._versions[tensor] += tensor._version - before[tensor]

    def changed(self) -> list[Tensor]:
        """Return the tensors that somebody else has written to."""
        return [tensor for tensor, version in self._versions.items() if tensor._version != version]

    def release(self) -> None:
        """Let go of the layers."""
        for guard in self._guards:
            guard.remove()
        for part in self.parts:
            _HOLDS[part] = [known for known in _HOLDS[part] if known() not in (None, self)]


_HOLDS: "weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[Hold]]]" = weakref.WeakKeyDictionary()


def holds_of(part: nn.Module) -> list[Hold]:
    """Return the holds on a layer, the latest last."""
    return [hold for known in _HOLDS.get(part, []) if (hold := known()) is not None]


def _refuse_training(module: nn.Module, inputs: Any) -> None:
    trains = module.training and torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters(False))
    if trains and not all(hold.allow_train for hold in holds_of(module)):  # a copy has the hook, but no hold
        raise ValueError(
            "the network is trained while it is patched, and what is trained would be lost; train outside of the "
            "patch, or use allow_train=True"
        )
