"""Telling real optimizer steps from batches without one."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


class RealSteps:
    """Notes the steps of optimizers: accumulation has none, and neither has a gradient scaler that skips one."""

    def __init__(self) -> None:
        self._stepped = False
        self._handles: list[Any] = []

    def watch(self, optimizers: Iterable[Optimizer]) -> None:
        """Begin to note the steps of these optimizers, and of no other."""
        self.stop()
        self._stepped = False
        self._handles = [optimizer.register_step_post_hook(self._note) for optimizer in optimizers]

    def taken(self) -> bool:
        """Tell whether there was a step since the last call."""
        stepped, self._stepped = self._stepped, False
        return stepped

    def stop(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, *arguments: Any) -> None:
        self._stepped = True
