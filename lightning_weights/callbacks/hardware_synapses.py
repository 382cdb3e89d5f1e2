"""When and where the weights of a network become conductances of devices."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_weights.callbacks._adapter_checkpoints import check_when_loading
from lightning_weights.callbacks._injection import (
    check_trained,
    inject_when_built,
    inject_when_loading,
    release,
)
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.callbacks._replacement import replace_layers
from lightning_weights.callbacks._synapse_layers import arrays_of, counted_in, put_devices
from lightning_weights.errors import LightningWeightsWarning, name_list
from lightning_weights.modules.device_model import DeviceModel
from lightning_weights.modules.synapse_array import COUNTS
from lightning_weights.modules.synapse_layer import SynapseLayer
from lightning_weights.modules.synapse_settings import SynapseSettings

CAPPED, SILENT = 0.2, 1e-4  # shares from which, and below which, the learning rate is called wrong


class HardwareSynapses(Callback):
    r"""Hold the weights of a network in electronic devices, which ``PulseSGD`` trains with pulses.

    $$w = \gamma\,(x^+ - x^-), \qquad x = \frac{G - G_{min}}{G_{max} - G_{min}} \in [0, 1]$$

    Before the optimizer exists, linear layers and two-dimensional convolutions of any LightningModule become
    ``SynapseLinear`` and ``SynapseConv2d``, programmed to the weights they had. Norms, embeddings and other layers stay
    digital. ``validate``, ``test`` and ``predict`` put the devices in if they load a checkpoint that has some.

    Every ``log_every_n_steps`` steps it logs ``weights/hw_synapse/`` ``pulses`` (per weight, so far), ``energy`` (all
    pulses so far, which is what programming energy is proportional to), ``refreshes`` (per weight, so far) and
    ``saturation`` (share of weights with a device that cannot go on).

    Args:
        device: The devices: a ``DeviceModel`` or a mapping of its arguments. ``None``: the default one.
        mode: How pairs are updated: ``unidirectional`` raises one of both, ``bidirectional`` raises one and lowers the
            other, ``single`` raises or lowers a single device, which is read against a fixed reference.
        modules: Layers to change: names as in ``named_modules()``, with ``*`` and ``?``. ``None``: all linear layers
            and two-dimensional convolutions.
        exclude: Layers to leave out, in the same way.
        w_scale: γ > 0, the weight of a full range. ``None``: 7.5 √(2 / fan-in), for each layer.
        branch: For ``unidirectional``: ``ltp`` raises the device on the side of the change, ``ltd`` lowers the other.
        split: For ``bidirectional``: whether each device takes half of a change, instead of the whole.
        input_bits: Bits of what goes into the arrays, from 2. ``None``: exact.
        error_bits: Bits of the errors that come back into them, from 2. ``None``: exact.
        seed: Of what differs from device to device.
        read_out_on_end: Whether the fit ends with plain layers that have the weights of the devices.

    Raises:
        ValueError: If an argument is out of range or names no layer, a layer cannot be replaced, or the weights are
            trained by another optimizer than ``PulseSGD``.
        ShardedParameterError: If weights are sharded (FSDP).

    Warns:
        LightningWeightsWarning: If weights are beyond what devices can hold; after an epoch in which more than a fifth
            of the pulses were cut off at the largest number, or, with ``rounding="nearest"``, hardly any was given.

    Source: Lim et al. 2017, arXiv:1707.06381; see ``PulseSGD``.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> HardwareSynapses({"kind": "soft", "n_states": 64}, modules=["0"]).attach(network)
        >>> [type(layer).__name__ for layer in network]
        ['SynapseLinear', 'ReLU', 'Linear']

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.HardwareSynapses
              init_args: {device: {kind: soft, n_states: 64, nu_ltp: 2.0}, mode: unidirectional}
        ```
    """

    def __init__(
        self,
        device: DeviceModel | None = None,
        mode: Literal["unidirectional", "bidirectional", "single"] = "unidirectional",
        modules: list[str] | None = None,
        exclude: list[str] | None = None,
        w_scale: float | None = None,
        branch: Literal["ltp", "ltd"] = "ltp",
        split: bool = False,
        input_bits: int | None = None,
        error_bits: int | None = None,
        seed: int = 0,
        read_out_on_end: bool = False,
    ) -> None:
        self.settings = SynapseSettings(
            DeviceModel.of(device), mode, w_scale, branch, split, input_bits, error_bits, seed
        )
        self.modules = None if modules is None else name_list("modules", modules, " or None")
        self.exclude = None if exclude is None else name_list("exclude", exclude, " or None")
        self.read_out_on_end = read_out_on_end
        self.counted = dict.fromkeys(COUNTS, 0)
        self._reset()

    def _reset(self) -> None:
        self._steps = RealSteps()
        self._loading: RemovableHandle | None = None
        self._unwrap: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    @property
    def state_key(self) -> str:
        """Key in checkpoints, one per choice of layers."""
        return self._generate_state_key(modules=self.modules, exclude=self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """Return what had been counted when the epoch began."""
        return {"counted": dict(self.counted)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.counted = dict(state_dict["counted"])

    def attach(self, module: nn.Module) -> None:
        """Put devices behind the weights of a network; layers that have some stay as they are.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, and for loading a
        checkpoint without a Trainer.

        Args:
            module: Network or LightningModule, changed in place.

        Raises:
            ValueError: If a name fits nothing, a layer cannot be replaced, or devices that are there are others.
            ShardedParameterError: If a weight is sharded.
        """
        put_devices(module, self.settings, self.modules, self.exclude)

    def read_out(self, module: nn.Module) -> None:
        """Turn the layers into plain ones with the weights that the devices read out to.

        Args:
            module: Network or LightningModule with devices.

        Raises:
            ValueError: If it has none.
        """
        layers = [part for part in module.modules() if isinstance(part, SynapseLayer)]
        if not layers:
            raise ValueError("there are no devices to read out; was the network read out before?")
        replace_layers(module, {layer: layer.plain() for layer in layers})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for devices to be put in as soon as the network is built, or a checkpoint has some."""
        if stage == "fit":
            inject_when_built(pl_module, self.attach)
            self._unwrap = check_when_loading(pl_module, self._check_checkpoint)
        else:
            self._loading = inject_when_loading(pl_module, self.attach, "*weight_devices.plus")

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.state_key not in checkpoint.get("callbacks", {}):
            raise ValueError(
                "the checkpoint was saved without HardwareSynapses, so that its weights are in no devices; load its "
                "state_dict into the module and begin a fit without ckpt_path"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._steps.stop()
        if self._loading is not None:
            self._loading.remove()
        if self._unwrap is not None:
            self._unwrap()
        self._loading = self._unwrap = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own methods."""
        release(pl_module)
        self.teardown(trainer, pl_module, "")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that pulses, and nothing else, will change the weights."""
        weights = {name: weight for name, weight, _ in arrays_of(pl_module) if weight.requires_grad}
        check_trained(trainer, weights, "HardwareSynapses")
        ours = {id(weight) for weight in weights.values()}
        for optimizer in trainer.optimizers:
            held = any(id(param) in ours for group in optimizer.param_groups for param in group["params"])
            if held and "sign_threshold" not in optimizer.defaults:
                raise ValueError(
                    f"the optimizer of synapses is {type(optimizer).__name__}, but conductances are not "
                    f"gradient-trainable; use lightning_weights.optimizers.PulseSGD"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to note the optimizers' steps."""
        self._steps.watch(trainer.optimizers)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what has been counted; not called when a run resumes inside an epoch."""
        self.counted = counted_in(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        stepped = self._steps.taken()
        if not stepped or not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        full = _thresholds(trainer)
        arrays = [(weight, array) for _, weight, array in arrays_of(pl_module)]
        weights = sum(weight.numel() for weight, _ in arrays)
        counted = counted_in(pl_module)
        saturated = [array.saturated(full.get(id(weight), 1.0)) * weight.numel() for weight, array in arrays]
        values = {
            "pulses": counted["pulses"] / weights,
            "energy": float(counted["pulses"]),
            "refreshes": counted["refreshes"] / weights,
            "saturation": torch.stack(saturated).sum() / weights,
        }
        pl_module.log_dict({f"weights/hw_synapse/{name}": value for name, value in values.items()}, on_epoch=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the learning rate gave far too many pulses in this epoch, or hardly any."""
        now, before = counted_in(pl_module), self.counted
        new = {name: now[name] - before[name] for name in COUNTS}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        nearest = any(group.get("rounding") == "nearest" for group in groups)
        weights = sum(weight.numel() for _, weight, _ in arrays_of(pl_module))
        text = ""
        if new["capped"] > CAPPED * new["moved"]:
            text = f"{new['capped'] / new['moved']:.0%} of the changes were cut off at max_pulses: lower the rate"
        elif nearest and new["moved"] < SILENT * weights:
            text = f"{new['moved']} of {weights} weights got a pulse: raise the rate, or use rounding='stochastic'"
        if text and trainer.is_global_zero:
            warnings.warn(f"in this epoch {text}", LightningWeightsWarning, stacklevel=2)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the weights out, if asked to; Lightning has saved all its checkpoints by now."""
        if self.read_out_on_end:
            self.read_out(pl_module)


def _thresholds(trainer: Trainer) -> dict[int, float]:
    """Return where devices count as full, by parameter."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return {
        id(param): group["refresh_threshold"] for group in groups for param in group["params"] if "refresh" in group
    }
