"""Learn which weights to keep (phase II)."""

import math
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_weights.callbacks._injection import (
    check_trained,
    inject_when_built,
    inject_when_loading,
    named_layers,
    release,
    weight_layers,
)
from lightning_weights.callbacks._pruning_phase import BATCH_NORMS, PruningPhase, drop_gradients, warn_if_still
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.callbacks._score_masks import begin_scores, is_pruned, masks_of, put_masks, threshold
from lightning_weights.callbacks.finetune_pruned import FinetunePruned
from lightning_weights.callbacks.tscnc import TSCNC
from lightning_weights.errors import check_choice, check_number, name_list
from lightning_weights.modules.hard_concrete_gate import HardConcreteGate
from lightning_weights.modules.score_mask import ScoreMask, refresh_masks


class ScorePruning(PruningPhase):
    r"""Freeze a trained network and learn scores that say which of its weights to keep.

    $$\tilde W = W \odot [\,|S| \text{ is among the largest}\,]$$

    $$\frac{\partial L}{\partial S} = \operatorname{sign}(S) \odot \frac{\partial L}{\partial \tilde W} \odot W$$

    It works with any LightningModule, unchanged: every Linear and Conv weight, the first and the last layer included,
    gets scores before the optimizer is made. When the phase begins, they start from the weights, and so with the mask
    of magnitude pruning. From then on only they are trained, and batch normalisation if you like, with the module's own
    loss; all other parameters keep every bit. After each optimizer step the masks are made anew.

    Either in a fit of its own, on a network that is trained already, or from ``start_epoch`` on in the fit that trains
    it. In the latter case a TSCNC beside it makes its averaged weights the network's, and stops averaging; a
    learning-rate schedule goes on, so take one that restarts with every phase, such as ``CosineAnnealingWarmRestarts``.
    On a network that is pruned already the scores go on, and the masks keep what ``keep`` and ``scope`` say now. Then
    FinetunePruned trains the weights that are left, and ``make_pruning_permanent`` makes plain layers.

    Every ``log_every_n_steps`` steps it logs ``weights/tscnc/kept`` (share of the weights) and
    ``weights/tscnc/mask_changes`` (share of the masks' entries that the last step has changed).

    Args:
        keep: Fraction k of the weights to keep, above 0 and at most 1.
        scope: ``layer`` keeps the fraction of every layer, ``global`` the largest scores of all layers together.
        init: ``scaled`` starts with the weights, brought to the size of an initialisation; ``random`` with random
            scores. A network that is pruned already has scores, and keeps them.
        train_bn: Whether batch normalisation is trained beside the scores; if not, its statistics stand still, too.
        exclude: Layers to leave dense: names as in ``named_modules()``, which may hold ``*`` and ``?``.
        start_epoch: First epoch of the phase, counted from 0.

    Raises:
        ValueError: If an argument is out of range, names no layer, a layer would keep nothing or is all zero, or
            weights are shared.
        ShardedParameterError: If weights are sharded (FSDP2).

    Source: Sehwag et al. 2020 (HYDRA), arXiv:2002.10509; phase II of Feng et al. 2025, arXiv:2503.20454, whose code
    takes the fan of a classifier's scores from the wrong side, which changes only the size of their steps.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> pruning = ScorePruning(keep=0.25)
        >>> pruning.attach(network)
        >>> pruning.prune(network)
        >>> int(network[0].weight.count_nonzero())
        16

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.ScorePruning
              init_args: {keep: 0.1, start_epoch: 25}
        ```
    """

    def __init__(
        self,
        keep: float,
        scope: Literal["layer", "global"] = "layer",
        init: Literal["scaled", "random"] = "scaled",
        train_bn: bool = True,
        exclude: list[str] | None = None,
        start_epoch: int = 0,
    ) -> None:
        check_number("keep", keep, low=0.0, high=math.nextafter(1.0, 2.0), low_allowed=False)
        check_choice("scope", scope, ("layer", "global"))
        check_choice("init", init, ("scaled", "random"))
        names = [] if exclude is None else name_list("exclude", exclude, " or None")
        super().__init__(start_epoch)
        self.keep = keep
        self.scope = scope
        self.init = init
        self.train_bn = train_bn
        self.exclude = names

    def _reset(self) -> None:
        super()._reset()
        self._loading: RemovableHandle | None = None
        self._steps = RealSteps()
        self._still: list[nn.Module] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the phase and what was kept."""
        return {**super().state_dict(), "keep": self.keep, "scope": self.scope}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the phase.

        Raises:
            ValueError: If the checkpoint was pruned to another ``keep`` or ``scope``.
        """
        for name in ("keep", "scope"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but {state_dict[name]!r} in the checkpoint; resume with that "
                    f"one, or begin a fit without ckpt_path on the loaded weights"
                )
        super().load_state_dict(state_dict)

    def attach(self, module: nn.Module) -> None:
        """Put scores into a network, with masks that keep everything; layers that have some keep them.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, and for loading a
        checkpoint of a pruned network without a Trainer.

        Args:
            module: Network or LightningModule.

        Raises:
            ValueError: If a name fits no layer, nothing is left to prune, or a layer cannot be pruned.
            ShardedParameterError: If a weight is sharded.
        """
        dense = named_layers(module, self.exclude, "exclude")
        layers = {name: layer for name, layer in weight_layers(module).items() if name not in dense}
        if not layers:
            raise ValueError(
                f"there is nothing to prune: the Linear and Conv layers of the network are "
                f"{', '.join(weight_layers(module)) or 'none'}, and exclude is {self.exclude}"
            )
        put_masks(module, layers, self.keep)

    def prune(self, module: nn.Module) -> None:
        """Let the scores begin, unless the network is pruned already, and prune by them; a Trainer does this itself.

        Args:
            module: Network with scores.

        Raises:
            ValueError: If ``init`` is ``scaled`` and a layer is all zero, or a layer would be left without a weight.
        """
        if is_pruned(module):
            threshold(masks_of(module), self.keep, self.scope)
        else:
            begin_scores(module, self.init, self.keep, self.scope)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for the scores to be put in as soon as the network is built, or a checkpoint has some."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            inject_when_built(pl_module, self.attach)
        else:
            self._loading = inject_when_loading(pl_module, self.attach, "*.parametrizations.*.scores")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._let_go()

    def _let_go(self) -> None:
        self._steps.stop()
        if self._loading is not None:
            self._loading.remove()
        self._loading = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own methods and modes."""
        release(pl_module)
        self._let_move()
        self._let_go()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has scores: a module that does not load strictly would go on without.

        Raises:
            ValueError: If it was saved without ScorePruning.
        """
        if self.state_key not in checkpoint["callbacks"]:
            raise ValueError(
                "the checkpoint holds no scores, since it was saved without ScorePruning; load its weights into the "
                "module and begin a fit without ckpt_path"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check optimizers and phases."""
        self._check(trainer, pl_module)
        for other in self._followers(trainer):
            if other.start_epoch <= self.start_epoch:
                raise ValueError(
                    f"FinetunePruned has start_epoch={other.start_epoch}, but ScorePruning begins at "
                    f"{self.start_epoch}; let FinetunePruned begin later, or take ScorePruning out of its fit"
                )

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores = {name: mask.scores for name, mask in self._masks(pl_module).items()}
        check_trained(trainer, scores, "ScorePruning")

    @staticmethod
    def _masks(pl_module: LightningModule) -> dict[str, ScoreMask]:
        masks = masks_of(pl_module)
        if not masks:
            raise ValueError(
                "ScorePruning found no scores in the network: it came to the Trainer after the network and the "
                "optimizer were made; give it to the Trainer before fit"
            )
        return masks

    @staticmethod
    def _followers(trainer: Trainer) -> list[FinetunePruned]:
        return [callback for callback in trainer.callbacks if isinstance(callback, FinetunePruned)]

    def _learning(self, trainer: Trainer) -> bool:
        return self.started and not any(other.started for other in self._followers(trainer))

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the averaged weights and prune."""
        self._check(trainer, pl_module)
        if trainer.is_global_zero:
            kinds = (*BATCH_NORMS, HardConcreteGate) if self.train_bn else (HardConcreteGate,)
            warn_if_still(pl_module, kinds, "ScorePruning")
        for callback in trainer.callbacks:
            if isinstance(callback, TSCNC) and callback.averaging:
                callback.apply_average(pl_module)
        self.prune(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch the optimizers."""
        self._steps.watch(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hold batch normalisation still in the phase, if it is not trained."""
        if self.train_bn or not self._learning(trainer):
            self._let_move()
            return
        moving = [part for part in pl_module.modules() if isinstance(part, BATCH_NORMS) and part.training]
        for part in moving:
            part.eval()
        self._still += moving

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give batch normalisation its mode back."""
        self._let_move()

    def _let_move(self) -> None:
        for part in self._still:
            part.train()
        self._still = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let the optimizer move scores only in the phase, and nothing but them."""
        scores = [mask.scores for mask in masks_of(pl_module).values()]
        if not self._learning(trainer):
            drop_gradients(optimizer, scores)
            return
        trained = {id(score) for score in scores}
        if self.train_bn:
            norms = [part for part in pl_module.modules() if isinstance(part, BATCH_NORMS)]
            trained |= {id(param) for part in norms for param in part.parameters()}
        drop_gradients(optimizer, (param for param in pl_module.parameters() if id(param) not in trained))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the masks of the new scores and log, after real steps only."""
        if not self._steps.taken():
            return
        masks = list(self._masks(pl_module).values())
        logs = bool(trainer.log_every_n_steps) and trainer.global_step % trainer.log_every_n_steps == 0
        before = [mask.mask.clone() for mask in masks] if logs else []
        if self._learning(trainer):
            refresh_masks(masks, self.scope)
        if not logs:
            return
        total = sum(mask.mask.numel() for mask in masks)
        changed = sum(mask.mask.ne(old).sum() for mask, old in zip(masks, before, strict=True))
        values = {"kept": sum(mask.kept for mask in masks) / total, "mask_changes": changed / total}
        pl_module.log_dict({f"weights/tscnc/{name}": value for name, value in values.items()}, on_epoch=False)
