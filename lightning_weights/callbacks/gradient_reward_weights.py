"""When the weights of objectives follow their gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.errors import ShardedParameterError
from lightning_weights.modules.multi_objective_rl import MultiObjectiveRL
from lightning_weights.modules.reward_weighting import RewardWeighting


class GradientRewardWeights(LeanCallback):
    r"""Give a module weights of its objectives that follow the gradients of the objectives.

    $$I_k = \sum_j \langle g_k, g_j \rangle, \qquad w \leftarrow \mathrm{softmax}(\log w + \eta\, \bar I)$$

    During a fit the module has the attribute ``reward_weighting``. ``modules.MultiObjectiveRL`` uses it; a module of
    your own calls ``weights = self.reward_weighting.update(losses)`` in its ``training_step``, with one loss per
    objective, and trains on the mixture. Gradients are averaged over processes before they are multiplied.

    Every ``log_every_n_steps`` optimizer steps it logs ``weights/dynamic_reward/weight_<objective>`` and
    ``influence_<objective>``.

    Args:
        objectives: Names of the objectives.
        initial: Positive weights with a sum of 1 to begin with. ``None``: the ``weights`` of a
            ``modules.MultiObjectiveRL``, else all alike.
        eta: Step size η.
        lr_coupled: Whether η is the learning rate divided by ``mu``, as in the published code: weights freeze with it.
        mu: What the learning rate is divided by.
        accumulate: Updates whose mean influence moves the weights once.
        layers: Regular expression of the names of parameters whose gradients count. ``None``: all of them.
        clip_norm: Largest norm of a gradient, over all parameters, for ``normalize="clip"``. ``None``: none.
        normalize: ``clip`` scales gradients with a larger norm down to ``clip_norm``, ``unit`` scales all gradients to
            a norm of 1, ``none`` leaves them alone.
        min_weight: What no weight falls below.
        center: Whether what all objectives have in common, such as a divergence from a reference, is left out of their
            gradients. The published code leaves it in.

    Raises:
        ValueError: If an argument is out of range, or the module has other objectives.
        ShardedParameterError: If parameters are sharded.

    Source: Lu et al. 2025, arXiv:2509.11452.

    Examples:
        >>> GradientRewardWeights(["accuracy", "brevity"], initial=[0.75, 0.25]).weights.tolist()
        [0.75, 0.25]

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.GradientRewardWeights
              init_args: {objectives: [accuracy, brevity, clarity], normalize: unit}
        ```
    """

    def __init__(
        self,
        objectives: list[str],
        initial: list[float] | None = None,
        eta: float = 0.1,
        lr_coupled: bool = False,
        mu: float = 1e-5,
        accumulate: int = 1,
        layers: str | None = None,
        clip_norm: float | None = 1.0,
        normalize: Literal["clip", "unit", "none"] = "clip",
        min_weight: float = 0.0,
        center: bool = False,
    ) -> None:
        self.arguments: dict[str, Any] = {
            "objectives": objectives,
            "initial": initial,
            "eta": eta,
            "lr_coupled": lr_coupled,
            "mu": mu,
            "accumulate": accumulate,
            "layers": layers,
            "clip_norm": clip_norm,
            "normalize": normalize,
            "min_weight": min_weight,
        }
        self.center = center
        self.state: dict[str, Any] = {}
        self._reset()
        self._keep()
        self.arguments["objectives"] = self.objectives
        self.arguments["initial"] = None if initial is None else list(initial)

    def _reset(self, weights: list[float] | None = None) -> None:
        initial = weights if self.arguments["initial"] is None else self.arguments["initial"]
        self._weighting = RewardWeighting(**{**self.arguments, "initial": initial})
        if self.state:
            self._write(self.state)
        self._module: Any = None
        self._trainer: Any = None
        self._last_step = -1

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives."""
        return self._weighting.objectives

    @property
    def weights(self) -> Tensor:
        """The weights now, (K,), fp64, with a sum of 1."""
        return self._weighting.weights

    def state_dict(self) -> dict[str, Any]:
        """Return logarithms of weights, influences since the last update and their number, as plain numbers."""
        return dict(self.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._write(state_dict)
        self._keep()

    def _write(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            buffer = getattr(self._weighting, name)
            buffer.copy_(torch.tensor(value, dtype=buffer.dtype))

    def _keep(self) -> None:
        self.state = {name: value.tolist() for name, value in self._weighting.state_dict().items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its weights, which begin anew unless a checkpoint is loaded."""
        if stage != "fit":
            return
        if isinstance(pl_module, MultiObjectiveRL) and pl_module.objectives != self.objectives:
            raise ValueError(
                f"objectives is {self.objectives}, but the rewards of MultiObjectiveRL are {pl_module.objectives}; "
                f"give the same names in the same order"
            )
        self.state = {}
        self._reset(pl_module.weights if isinstance(pl_module, MultiObjectiveRL) else None)
        self._keep()
        self._trainer, self._module = trainer, pl_module
        pl_module.reward_weighting = self

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are gradients to compare."""
        names, parameters = self._trained()
        if any(hasattr(parameter, "placements") for parameter in parameters):
            raise ShardedParameterError(
                "gradients of single objectives are taken with torch.autograd.grad, which sharded parameters (FSDP2) "
                "do not allow; use DDP, or RewardWeighting with gradients of your own"
            )
        self._weighting.chosen(names)

    def _trained(self) -> tuple[list[str], list[Tensor]]:
        trained = [(name, param) for name, param in self._module.named_parameters() if param.requires_grad]
        return [name for name, _ in trained], [param for _, param in trained]

    def gradients(self, losses: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the gradient of each loss, averaged over processes; the graph is kept.

        Args:
            losses: 0-d tensors.

        Returns:
            One list per loss, of all parameters that are trained, with zeros for those that a loss does not reach.
        """
        _, parameters = self._trained()
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        found = []
        for loss in losses:
            scaled = loss if scaler is None else scaler.scale(loss)
            rows = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
            row = [
                torch.zeros_like(param) if grad is None else grad for param, grad in zip(parameters, rows, strict=True)
            ]
            found.append(row if scaler is None else [grad / scaler.get_scale() for grad in row])
        if self._trainer.world_size > 1:
            # copies: two parameters may have one gradient, or one with a single number in memory
            found = [[grad.clone(memory_format=torch.contiguous_format) for grad in row] for row in found]
            for grad in (grad for row in found for grad in row):
                dist.all_reduce(grad)
                grad /= self._trainer.world_size
        return found

    def update(self, losses: Mapping[str, Tensor], common: Tensor | None = None) -> Tensor:
        """Take the gradients of all objectives into account and return the weights to mix them with.

        Args:
            losses: Loss of each objective alone.
            common: What the losses have in common and do not contain, such as a divergence; it is added to each unless
                ``center`` leaves it out.

        Returns:
            Weights, (K,), on the losses' device and in their type, without gradient.

        Raises:
            ValueError: If the names are not those of the objectives.
        """
        if list(losses) != self.objectives:
            raise ValueError(f"losses are of {list(losses)}; allowed are {self.objectives}, in this order")
        rows = list(losses.values())
        if common is not None and not self.center:
            rows = [loss + common for loss in rows]
        return self.update_from(self.gradients(rows)).to(rows[0])

    def update_from(self, gradients: Sequence[Sequence[Tensor]]) -> Tensor:
        """Take gradients into account that ``gradients`` returned, or sums of those, and return the weights.

        Args:
            gradients: One list per objective, of all parameters that are trained.
        """
        lr = float(self._trainer.optimizers[0].param_groups[0]["lr"])
        weights = self._weighting.update(gradients, lr=lr, names=self._trained()[0])
        self._keep()
        return weights

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log after a real step."""
        every = trainer.log_every_n_steps
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if every and trainer.global_step % every == 0:
            influences = self._weighting.last_influence
            pl_module.log_dict(
                {
                    f"weights/dynamic_reward/{kind}_{name}": float(value)
                    for kind, values in (("weight", self.weights), ("influence", influences))
                    for name, value in zip(self.objectives, values, strict=True)
                },
                on_epoch=False,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        if getattr(pl_module, "reward_weighting", None) is self:
            pl_module.reward_weighting = None
        self._module = self._trainer = None
