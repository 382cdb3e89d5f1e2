"""A moving average of a network's parameters that takes their place while the network is measured."""

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_weights.errors import LightningWeightsWarning


class WeightAverage:
    """Exponential moving average of the trainable parameters of a module, in fp32 or wider.

    Args:
        decay: What one step leaves of the average, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.averages: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._owner: weakref.ref[nn.Module] | None = None

    def forget_others(self, module: nn.Module) -> None:
        """Drop the average unless it was last used with this module."""
        if self._owner is None or self._owner() is not module:
            self.averages, self._live = {}, {}

    def start(self, module: nn.Module) -> None:
        """Begin at the weights that the module has."""
        self.steps = 0
        self._live = {}
        self.averages = {
            name: param.detach().to(torch.promote_types(param.dtype, torch.float32), copy=True)
            for name, param in module.named_parameters()
            if param.requires_grad
        }
        self._owner = weakref.ref(module)

    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's weights."""
        if not self.averages:
            return
        params = {name: param.detach() for name, param in self._params(module).items()}
        # a checkpoint may have brought them on another device
        self.averages = {name: average.to(params[name].device) for name, average in self.averages.items()}
        latest = [params[name].to(average.dtype) for name, average in self.averages.items()]
        get_ema_multi_avg_fn(self.decay)(list(self.averages.values()), latest, self.steps)
        self.steps += 1

    def swap_in(self, module: nn.Module) -> None:
        """Show the average; ``swap_out`` takes it back."""
        if self._live or not self.averages:
            return
        if not self.averages.keys() <= dict(module.named_parameters()).keys():
            warnings.warn(
                "the network is no longer the one whose weights were averaged, since it was exported, say: it is "
                "measured with the weights that it has. Call apply_average before exporting.",
                LightningWeightsWarning,
                stacklevel=2,
            )
            return
        params = self._params(module)
        self._live = {name: param.detach().clone() for name, param in params.items()}
        self._write(params, self.averages)

    def live_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the weights that ``swap_in`` has replaced, by their keys in the module's ``state_dict``."""
        if not self._live:
            return {}
        names = {id(param): name for name, param in module.named_parameters() if name in self._live}
        state = module.state_dict(keep_vars=True)
        return {key: self._live[names[id(value)]] for key, value in state.items() if id(value) in names}

    def swap_out(self, module: nn.Module) -> None:
        """Give the module back the weights that ``swap_in`` replaced; without one before, nothing happens."""
        if self._live:
            self._write(self._params(module), self._live)
            self._live = {}

    def apply(self, module: nn.Module) -> None:
        """Make the average the module's weights, and end it.

        Raises:
            ValueError: If there is none, or it is that of another network.
        """
        if not self.averages:
            raise ValueError(
                "there are no averaged weights: they come with a fit with an ema_decay, end when they are applied or "
                "pruning begins, and stay behind in processes that were spawned; load them from a checkpoint"
            )
        self._write(self._params(module), self.averages)
        self.averages, self._live = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the averages."""
        return {"steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.steps, self.averages = state["steps"], dict(state["averages"])

    def _params(self, module: nn.Module) -> dict[str, Tensor]:
        params = dict(module.named_parameters())
        missing = [
            name for name in self.averages if name not in params or params[name].shape != self.averages[name].shape
        ]
        if missing:
            raise ValueError(
                f"the averaged weights are those of another network: {', '.join(missing)} is not in this one or has "
                f"another shape; use the network that was trained"
            )
        self._owner = weakref.ref(module)
        return {name: params[name] for name in self.averages}

    @staticmethod
    def _write(params: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, param in params.items():
                param.copy_(values[name])


class AveragingCallback(Callback):
    """A callback that averages the weights of the network that it trains, in its state and in validation's sight."""

    ema_decay: float | None

    def _reset(self) -> None:
        self._average = WeightAverage(self.ema_decay or 0.0)
        self._restored = False
        self._saved_decay = self.ema_decay

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and how many steps they have seen."""
        return {**self._average.state_dict(), "ema_decay": self.ema_decay}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._average.load_state_dict(state_dict)
        self._saved_decay = state_dict["ema_decay"]
        self._restored = True

    @property
    def averaging(self) -> bool:
        """Whether there are averaged weights."""
        return bool(self._average.averages)

    def apply_average(self, module: nn.Module) -> None:
        """Make the averaged weights the weights of the network, and stop averaging until the next fit.

        Args:
            module: What was given to the Trainer.

        Raises:
            ValueError: If there is no average, or it is that of another network.
        """
        self._average.apply(module)

    def _begin_average(self, module: nn.Module) -> None:
        if self._restored and self._saved_decay != self.ema_decay:
            raise ValueError(
                f"ema_decay is {self.ema_decay}, but {self._saved_decay} in the checkpoint; resume with that one, or "
                f"begin a fit without ckpt_path on the loaded weights"
            )
        if self.ema_decay is not None and not self._restored:
            self._average.start(module)
        self._restored = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the live weights, also when the average is shown."""
        checkpoint["state_dict"].update(self._average.live_state(pl_module))

    def _show_average(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average.swap_in(pl_module)

    def _hide_average(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average.swap_out(pl_module)

    on_validation_start = on_test_start = on_predict_start = _show_average
    on_validation_end = on_test_end = on_predict_end = _hide_average
