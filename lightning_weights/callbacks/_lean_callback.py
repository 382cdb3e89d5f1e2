"""Callbacks whose copies and pickles hold arguments and plain state only."""

from typing import Any

from lightning.pytorch import Callback


class LeanCallback(Callback):
    """Leaves what begins with an underscore out of copies, which ``_reset`` makes anew."""

    def _reset(self) -> None:
        """Make what begins with an underscore; constructors call it last."""

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()
