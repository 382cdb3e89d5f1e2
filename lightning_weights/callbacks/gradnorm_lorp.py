"""When and where weight-normalised low-rank layers are put into a network, folded and merged."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_weights.callbacks._adapter_checkpoints import check_when_loading
from lightning_weights.callbacks._injection import check_trained, inject_when_built, inject_when_loading, release
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.callbacks._replacement import check_replaceable, replace_layers, saved_modules
from lightning_weights.callbacks._targets import ALL_LINEAR, check_same_targets, target_layers, target_names
from lightning_weights.errors import LightningWeightsWarning, check_number, name_list
from lightning_weights.functional.untrained import look_untrained
from lightning_weights.modules.gradnorm_lorp import GradNormLoRPLinear, check_arguments

KEPT = ("mode", "r", "alpha", "detach_norm")  # what a checkpoint was trained with


class GradNormLoRP(Callback):
    r"""Train magnitudes and low-rank directions of linear layers, whose gradients ``GradNormLoRPAdamW`` projects.

    $$W_a = M_a \frac{V_a}{\|V_a\|}, \qquad V = W_0 + \tfrac{\alpha}{r}\, I J$$

    Before the optimizer exists, the chosen layers of any LightningModule become ``GradNormLoRPLinear``, and what is
    neither one of their factors or magnitudes nor part of ``modules_to_save`` is frozen. The matrices to project are
    marked for the optimizer. ``validate``, ``test`` and ``predict`` put the layers in if they load a checkpoint that
    has some.

    With the mode ``full``, for training from scratch, nothing is frozen, and the directions themselves are the matrices
    to project. With ``merge_every`` the factors are folded into W₀ from time to time and start anew, as does the
    optimizer's state of them; that of everything else goes on.

    Every ``log_every_n_steps`` steps it logs ``weights/gradnorm_lorp/`` ``magnitude``, the mean of all M without signs,
    and, in the mode ``lowrank``, ``update``, the norm of the updates over that of W₀, a mean over layers.

    Args:
        r: Rank of the update.
        alpha: α, which scales the update.
        dropout: Probability of dropping an input of the update in training.
        target_modules: Layers to change: names, or last parts of names, with ``*`` and ``?``; ``all-linear`` for all
            but a language model's output.
        modules_to_save: Modules that are trained whole, such as a new classifier. ``None``: none.
        mode: ``lowrank`` for fine-tuning, ``full`` for training from scratch.
        detach_norm: Whether ‖V_a‖ counts as a constant in the gradient, as in DoRA.
        merge_every: Optimizer steps after which the factors are folded into W₀. 0: never.
        merge_on_fit_end: Whether a fit ends with plain linear layers. Checkpoints saved before stay as they are.

    Raises:
        ValueError: If an argument is out of range, names no layer, or a layer cannot be replaced; if a network or
            checkpoint has layers of another kind.
        ShardedParameterError: If weights are sharded (FSDP2).

    Source: Huang, Shen, Zhu, Rudinac, Kanoulas, 2025, arXiv:2412.19616. ``full`` and ``merge_every`` are our reading
    of its pre-training.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> GradNormLoRP(r=2, target_modules=["0"], modules_to_save=["2"]).attach(network)
        >>> [name for name, param in network.named_parameters() if param.requires_grad]
        ['0.magnitude', '0.factor_i', '0.factor_j', '2.weight', '2.bias']

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.GradNormLoRP
              init_args: {r: 8, target_modules: [q_proj, v_proj], modules_to_save: [classifier]}
        ```
    """

    def __init__(
        self,
        r: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target_modules: list[str] | str = ALL_LINEAR,
        modules_to_save: list[str] | None = None,
        mode: Literal["lowrank", "full"] = "lowrank",
        detach_norm: bool = True,
        merge_every: int = 0,
        merge_on_fit_end: bool = False,
    ) -> None:
        check_arguments(r, alpha, dropout, mode)
        check_number("merge_every", merge_every, low=0, whole=True)
        if mode == "full" and merge_every:
            raise ValueError(f"merge_every is {merge_every}, but mode='full' has no factors; use 0, or mode='lowrank'")
        self.r = r
        self.alpha = alpha
        self.dropout = dropout
        self.target_modules = target_names(target_modules)
        self.modules_to_save = [] if modules_to_save is None else name_list("modules_to_save", modules_to_save)
        self.mode = mode
        self.detach_norm = detach_norm
        self.merge_every = merge_every
        self.merge_on_fit_end = merge_on_fit_end
        self.steps = 0
        self.merged = False
        self._reset()

    def _reset(self) -> None:
        self._real_steps = RealSteps()
        self._loading: RemovableHandle | None = None
        self._unwrap: Callable[[], None] | None = None
        self._restored = False
        self._frozen: list[nn.Parameter] = []

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return what the layers are, the number of optimizer steps and whether they were merged since."""
        return {**{name: getattr(self, name) for name in KEPT}, "steps": self.steps, "merged": self.merged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of steps."""
        self.steps = state_dict["steps"]
        self._restored = True

    def attach(self, module: nn.Module) -> None:
        """Put the layers into a network and freeze the rest; layers that are there already stay.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, and for loading a
        checkpoint without a Trainer.

        Args:
            module: Network or LightningModule.

        Raises:
            ValueError: If a name fits nothing, a layer cannot be replaced, or those that are there are of another kind.
            ShardedParameterError: If a weight is sharded.
        """
        layers = layers_of(module)
        for name, layer in layers.items():
            here = {key: getattr(layer, key) for key in KEPT}
            self._check_same({**here, "dropout": layer.dropout.p}, f"the layer {name}", (*KEPT, "dropout"))
        saved = saved_modules(module, self.modules_to_save)
        targets = target_layers(module, self.target_modules, saved, (nn.Linear, GradNormLoRPLinear))
        if layers:
            check_same_targets(layers, targets, self.target_modules, "merge it first, or give the same target_modules")
        else:
            layers = self._put_layers(module, targets, saved)
        for layer in layers.values():
            for param in layer.projected_parameters():
                param._lw_project = True

    def _put_layers(
        self, module: nn.Module, targets: dict[str, Any], saved: Sequence[str]
    ) -> dict[str, GradNormLoRPLinear]:
        check_replaceable(module, targets)
        options = {"r": self.r, "alpha": self.alpha, "dropout": self.dropout}
        options |= {"mode": self.mode, "detach_norm": self.detach_norm}
        layers = {name: GradNormLoRPLinear(layer, **options).train(layer.training) for name, layer in targets.items()}
        replace_layers(module, {targets[name]: layer for name, layer in layers.items()})
        if self.mode == "lowrank":
            trained = [param for name in saved for param in module.get_submodule(name).parameters()]
            for layer in layers.values():
                trained += [layer.magnitude, *layer.projected_parameters()]
            self._freeze(module, trained)
        return layers

    def _freeze(self, module: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        kept = {id(param) for param in trained}
        others = [param for param in module.parameters() if id(param) not in kept and param.requires_grad]
        for param in others:
            param.requires_grad_(False)
        self._frozen += others

    def merge(self, module: nn.Module) -> None:
        """Turn the layers into plain linear ones, and let train again what this callback has frozen.

        Args:
            module: Network or LightningModule with the layers.

        Raises:
            ValueError: If there is none.
        """
        layers = layers_of(module)
        if not layers:
            raise ValueError("there is no GradNormLoRPLinear to merge; was the network merged before?")
        replace_layers(module, {layer: layer.merge() for layer in layers.values()})
        for param in self._frozen:
            param.requires_grad_(True)
        self._frozen = []
        self.merged = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for the layers to be put in as soon as the network is built, or a checkpoint has some."""
        self._restored = False
        self._let_go()
        if stage == "fit":
            self.merged = False
            inject_when_built(pl_module, self.attach)
            self._unwrap = check_when_loading(pl_module, self._check_checkpoint)
        else:
            self._loading = inject_when_loading(pl_module, self.attach, "*.magnitude")

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved is None or saved["merged"]:
            how = "without GradNormLoRP" if saved is None else "after its layers had been merged"
            raise ValueError(
                f"the checkpoint was saved {how}, so there is nothing to go on with; load its weights into the module "
                f"and begin a fit without ckpt_path"
            )
        self._check_same(saved, "the checkpoint")

    def _check_same(self, found: dict[str, Any], where: str, names: Sequence[str] = KEPT) -> None:
        for name in names if self.mode == "lowrank" else ("mode", "detach_norm"):
            if found[name] != getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but {found[name]!r} in {where}; use that one, or merge the "
                    f"network that was trained with it first"
                )

    def _let_go(self) -> None:
        self._real_steps.stop()
        if self._loading is not None:
            self._loading.remove()
        if self._unwrap is not None:
            self._unwrap()
        self._loading = self._unwrap = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own methods."""
        release(pl_module)
        self._let_go()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers, and that there is something to fine-tune."""
        layers = layers_of(pl_module)
        named = {f"{name}.{key}": param for name, layer in layers.items() for key, param in layer.named_parameters()}
        needed = {n: param for n, param in named.items() if param.requires_grad and not n.endswith(".bias")}
        check_trained(trainer, needed, "GradNormLoRP")
        fixed = self.mode == "lowrank" and not self.merge_every
        if fixed and trainer.is_global_zero and look_untrained(layer.weight for layer in layers.values()):
            warnings.warn(
                "GradNormLoRP freezes weights that look as if they had never been trained; load trained ones, or use "
                "mode='full' or merge_every to train from scratch",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count steps."""
        if not self._restored:
            self.steps = 0
        self._restored = False
        self._real_steps.watch(trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Fold if it is time, and log, after real steps only."""
        if not self._real_steps.taken():
            return
        self.steps += 1
        layers = list(layers_of(pl_module).values())
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict(self._sizes(layers), on_epoch=False)
        if self.merge_every and self.steps % self.merge_every == 0:
            self._fold(trainer, layers)

    def _sizes(self, layers: Sequence[GradNormLoRPLinear]) -> dict[str, Tensor]:
        lengths = torch.cat([layer.magnitude.detach().abs().float() for layer in layers])
        values = {"weights/gradnorm_lorp/magnitude": lengths.mean()}
        if self.mode == "lowrank":
            values["weights/gradnorm_lorp/update"] = torch.stack([layer.update_size() for layer in layers]).mean()
        return values

    def _fold(self, trainer: Trainer, layers: Sequence[GradNormLoRPLinear]) -> None:
        for number, layer in enumerate(layers):
            # the same on all processes and after a resume, without a generator to save
            layer.fold(torch.Generator().manual_seed(self.steps * 2**20 + number))
            for optimizer in trainer.optimizers:
                for param in layer.projected_parameters():
                    optimizer.state.pop(param, None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, if asked to."""
        if self.merge_on_fit_end:
            self.merge(pl_module)


def layers_of(module: nn.Module) -> dict[str, GradNormLoRPLinear]:
    """Return the layers that this method has put into a network, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, GradNormLoRPLinear)}
