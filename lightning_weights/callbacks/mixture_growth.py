"""When the members of a growing network are trained, and when it grows."""

import time
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from lightning_weights.callbacks._fresh_start import FreshStart
from lightning_weights.callbacks._growth_checks import (
    check_epochs,
    check_network,
    check_strategy,
    reached_phase,
    warn_about_plan,
    warn_unless_grown,
)
from lightning_weights.callbacks._joint_members import begin_joint_steps, end_joint_steps
from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._parameter_groups import move_to_own_group
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.errors import check_choice, check_number
from lightning_weights.functional.mixture_growth import COEFFICIENT_INITS, GROWN, grown_learning_rate, planned_phase
from lightning_weights.modules import copy_templates, grow, idle_parameters, mixture_parts, set_mode
from lightning_weights.modules.growing import coefficients_of, mixture_layers
from lightning_weights.modules.mixture_part import MODES


class MixtureGrowth(LeanCallback):
    r"""Train two networks of half the width, put them together, and train the whole one for a short time.

    $$W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}, \qquad W_q = \sum_t \alpha_{q,t}\, T_{s(q),t}$$

    The network has to have mixture layers, which ``mixturize`` makes out of a plain one. Epochs come in three phases:
    member 0, then member 1 with a fresh optimizer and a fresh learning-rate schedule, then the grown network, whose new
    blocks are mixed from the members' templates with new coefficients. Growth takes no data and adds no parameter, so
    that optimizers and checkpoints have one shape from start to end, and a run resumes anywhere with the same bits.
    ``materialize`` makes the network plain afterwards.

    While a member is trained, gradients of the other one are dropped before every step, so that neither weight decay
    nor momentum moves it. Coefficients get parameter groups without weight decay.

    Every ``log_every_n_steps`` steps it logs ``weights/mixture_growth/`` ``phase`` (0, 1 or 2) and, after growth,
    ``new_blocks``: how long coefficients of new blocks are, on average, in those of the members.

    Args:
        member_epochs: Epochs of member 0 and of member 1; the rest of ``max_epochs`` is for the grown network.
        coefficient_init: ``orthogonal`` gives block 3 the direction that overlaps least with the other blocks';
            ``scaled`` does so, too, with both new blocks as long as the scale; ``copy`` takes the members'
            coefficients, plus noise; ``zero`` makes the grown network the sum of its members; ``random`` draws new
            ones; ``none`` leaves those from the start.
        coefficient_scale: Length of new coefficients, or of their noise.
        joint_members: Whether member 0 is trained on in the second phase, too: the training step is then called for
            both members with every batch.
        member0_loss_weight: w, the factor of member 0's loss in the mean of both, if members are joint.
        member1_noise: Lets member 1 start from a copy of member 0's templates, with noise of so many of their standard
            deviations. ``None``: from templates of its own.
        freeze_members: Whether the members' coefficients stay as they are after growth; templates are trained on.
        grown_lr: Learning rate after growth, of the optimizer's first group; the others keep their proportions. Any
            schedule is overruled then. ``None``: whatever rates and schedules say.
        grown_lr_min: Where the cosines of this rate end.
        grown_lr_cycles: How many there are, each from half the peak of the one before.
        grown_warmup_epochs: Epochs that lead up to the first peak.
        reset_optimizer: Whether the optimizer's state is dropped at growth.
        seed: Of all noise.
        verbose: Whether a line tells of every change.

    Raises:
        ValueError: If an argument is out of range, the network would never grow, has grown already, or belongs to a
            strategy that does not expect parameters without gradients.
        MisconfigurationException: If the network has no mixture layers.
        ShardedParameterError: If parameters are sharded (FSDP).

    Warns:
        LightningWeightsWarning: If coefficients cannot be orthogonal, with three templates or fewer, a schedule is
            longer than a member is trained, or training ends before the network has grown.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251. The length of ``scaled``, and the norms, which
    keep their parameters, are ours.

    Examples:
        >>> MixtureGrowth(member_epochs=(16, 16), coefficient_init="zero", grown_lr=0.02, grown_lr_min=0.0).state_dict()
        {'phase': 0, 'member_epochs': [16, 16]}

        ```yaml
        trainer:
          max_epochs: 36
          callbacks:
            - class_path: lightning_weights.callbacks.MixtureGrowth
              init_args: {member_epochs: [16, 16], coefficient_init: zero, grown_lr: 0.02, grown_lr_min: 0.0}
        ```
    """

    def __init__(
        self,
        member_epochs: tuple[int, int] = (200, 200),
        coefficient_init: Literal["orthogonal", "scaled", "copy", "zero", "random", "none"] = "orthogonal",
        coefficient_scale: float = 1.0,
        joint_members: bool = False,
        member0_loss_weight: float = 0.1,
        member1_noise: float | None = None,
        freeze_members: bool = False,
        grown_lr: float | None = 1e-4,
        grown_lr_min: float = 3e-5,
        grown_lr_cycles: int = 4,
        grown_warmup_epochs: int = 1,
        reset_optimizer: bool = False,
        seed: int = 0,
        verbose: bool = True,
    ) -> None:
        if isinstance(member_epochs, (str, int)) or len(member_epochs) != 2:
            raise ValueError(f"member_epochs is {member_epochs!r}; allowed are two numbers, such as (200, 200)")
        for epochs in member_epochs:
            check_number("member_epochs", epochs, low=0, whole=True)
        check_choice("coefficient_init", coefficient_init, COEFFICIENT_INITS)
        check_number("coefficient_scale", coefficient_scale, low=0.0)
        check_number("member0_loss_weight", member0_loss_weight, low=0.0)
        for name, value in {"member1_noise": member1_noise, "grown_lr": grown_lr}.items():
            if value is not None:
                check_number(name, value, low=0.0)
        check_number("grown_lr_min", grown_lr_min, low=0.0)
        check_number("grown_lr_cycles", grown_lr_cycles, low=1, whole=True)
        check_number("grown_warmup_epochs", grown_warmup_epochs, low=0, whole=True)
        check_number("seed", seed, low=0, high=2**32, whole=True)
        self.member_epochs = [int(epochs) for epochs in member_epochs]
        self.coefficient_init = coefficient_init
        self.coefficient_scale = coefficient_scale
        self.joint_members = joint_members
        self.member0_loss_weight = member0_loss_weight
        self.member1_noise = member1_noise
        self.freeze_members = freeze_members
        self.grown_lr = grown_lr
        self.grown_lr_min = grown_lr_min
        self.grown_lr_cycles = grown_lr_cycles
        self.grown_warmup_epochs = grown_warmup_epochs
        self.reset_optimizer = reset_optimizer
        self.seed = seed
        self.verbose = verbose
        self.phase = 0
        self.growth_seconds: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._steps = RealSteps()
        self._start: FreshStart | None = None
        self._idle: list[torch.nn.Parameter] = []

    @property
    def _grown_from(self) -> int:
        return sum(self.member_epochs)

    def state_dict(self) -> dict[str, Any]:
        """Return the phase, and what phases there are."""
        return {"phase": self.phase, "member_epochs": list(self.member_epochs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: If the checkpoint's run has other phases.
        """
        if list(state_dict["member_epochs"]) != self.member_epochs:
            raise ValueError(
                f"member_epochs is {self.member_epochs}, but the checkpoint's run has {state_dict['member_epochs']}; "
                f"give the same to go on with it"
            )
        self.phase = int(state_dict["phase"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check network, epochs and strategy, give coefficients groups of their own, and note how it all starts."""
        check_network(pl_module)
        check_epochs(trainer, self._grown_from)
        if self.joint_members and not pl_module.automatic_optimization:
            raise ValueError("joint_members=True needs automatic optimization, in which losses can be added up")
        check_strategy(trainer)
        coefficients = coefficients_of(pl_module)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer in trainer.optimizers:
            decaying = [group["params"] for group in optimizer.param_groups if group.get("weight_decay")]
            held = {id(param) for params in decaying for param in params}
            moving = [alpha for alpha in coefficients.values() if id(alpha) in held]
            move_to_own_group(optimizer, moving, schedulers, weight_decay=0.0)
        self._start = FreshStart(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See where the network is, since a resumed run may begin in any phase, and tell what is odd about the plan."""
        planned = planned_phase(trainer.current_epoch, self.member_epochs)
        self._enter(pl_module, reached_phase(pl_module, planned, trainer.current_epoch))
        self._steps.watch(trainer.optimizers)
        # not before: to ask for the number of batches earlier makes Lightning lose an epoch of some resumed runs
        warn_about_plan(trainer, pl_module, self.coefficient_init, max(self.member_epochs))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on to the next phase where one begins; not called when a run resumes inside an epoch."""
        planned = planned_phase(trainer.current_epoch, self.member_epochs)
        if self._start is None:
            return
        if planned == GROWN and self.grown_lr is not None:
            self._start.rewind(trainer)  # overruled, a schedule of a fixed number of steps must not come to its end
        if planned == self.phase:
            return
        if planned == GROWN:
            self._grow(trainer, pl_module)
        else:
            self._start.again(trainer)
            if self.member1_noise is not None:
                copy_templates(pl_module, self.member1_noise, self.seed)
        self._enter(pl_module, planned)
        if self.verbose:
            grown = f" in {self.growth_seconds:.4f} s" if planned == GROWN else ""
            rank_zero_info(f"MixtureGrowth: {MODES[planned]}{grown}, from epoch {trainer.current_epoch}")

    def _grow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        begin = time.perf_counter()
        # the sign of a singular vector may differ from one kind of device to another
        grow(pl_module, self.coefficient_init, self.coefficient_scale, self.seed, agree=trainer.strategy.broadcast)
        if self.reset_optimizer and self._start is not None:
            self._start.forget(trainer)
        self.growth_seconds = time.perf_counter() - begin

    def _enter(self, pl_module: LightningModule, phase: int) -> None:
        self.phase = phase
        set_mode(pl_module, MODES[phase])
        end_joint_steps(pl_module)
        joint = phase == 1 and self.joint_members
        if joint:
            begin_joint_steps(pl_module, self.member0_loss_weight)
        self._idle = idle_parameters(pl_module, (0, 1) if joint else None)
        if self.freeze_members and phase == GROWN:
            self._idle += [alpha for layer in mixture_layers(pl_module) for alpha in list(layer.coefficients)[:2]]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the grown network, whatever a schedule has made of it."""
        if self.phase == GROWN and self.grown_lr is not None and self._start is not None:
            epochs = trainer.max_epochs - self._grown_from
            numbers = self.grown_lr, self.grown_lr_min, self.grown_lr_cycles, self.grown_warmup_epochs
            lr = grown_learning_rate(trainer.current_epoch - self._grown_from, epochs, *numbers)
            self._start.scale(trainer, lr)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop gradients of zero, which weight decay and momentum would follow, of what is not trained now."""
        for param in self._idle:
            param.grad = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        stepped = self._steps.taken()
        if not stepped or not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        values = {"phase": float(self.phase)}
        layers = [layer for layer in mixture_layers(pl_module) if layer.grows]
        if layers and self.phase == GROWN:
            norms = torch.stack([torch.stack([alpha.norm() for alpha in layer.coefficients]) for layer in layers])
            values["new_blocks"] = float((norms[:, 2:].mean(1) / norms[:, :2].mean(1)).mean())
        pl_module.log_dict({f"weights/mixture_growth/{name}": value for name, value in values.items()}, on_epoch=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the phase as it is, where other callbacks average buffers as they do weights."""
        modes = {id(part.phase): part.mode for part in mixture_parts(pl_module).values()}
        for callback in trainer.callbacks:
            for network in vars(callback).values():
                if isinstance(network, torch.nn.Module) and mixture_parts(network) and modes:
                    set_mode(network, next(iter(modes.values())))
        for name, buffer in pl_module.state_dict(keep_vars=True).items():
            if id(buffer) in modes:
                checkpoint["state_dict"][name] = torch.full_like(buffer, MODES.index(modes[id(buffer)]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell if the network has not grown."""
        warn_unless_grown(trainer, self.phase)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take hooks off, and leave the module with its own training step."""
        self._steps.stop()
        self._idle = []
        end_joint_steps(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.teardown(trainer, pl_module, "")
