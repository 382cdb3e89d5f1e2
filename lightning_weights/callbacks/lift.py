"""Which matrices LIFT fine-tunes, and what is kept of their gradients."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_weights.callbacks._injection import inject_when_built, release
from lightning_weights.callbacks._sparse_gradients import ClipsVectors, SparseGradients
from lightning_weights.callbacks._sparse_targets import clear, mark, sparse_targets
from lightning_weights.callbacks._targets import ALL_LINEAR, check_excluded, target_names
from lightning_weights.errors import name_list
from lightning_weights.functional.fingerprint import plain_name
from lightning_weights.functional.lift import gather_entries, mask_churn, remember_originals
from lightning_weights.functional.lift_delta import SparseChange, save_delta

UNLESS_GIVEN = ["lm_head"]  # what is excluded, where there is one
DELTA_FILE = "lift_delta.safetensors"


class LIFTFinetuning(Callback):
    """Choose by name the matrices that ``LIFTAdamW`` fine-tunes, freeze the rest, and keep gradients small.

    The optimizer trains, of every chosen matrix, the entries that matter most in its low-rank approximation. This
    callback marks the matrices before the optimizer exists, so it goes with any LightningModule. With ``sparse_grads``
    a gradient is reduced to the selected entries as soon as it is complete: at no time is more than one layer's whole
    gradient alive. Vectors of selected entries accumulate over batches, are clipped, and are unscaled and checked for
    overflow under ``16-mixed``. After the fit, marks and freezing are taken back; weights need nothing, they are final.

    Every ``log_every_n_steps`` steps it logs ``weights/lift/mask_churn``: the share of the selected entries that the
    last refresh replaced, 0 before the first.

    Args:
        target_modules: ``all-linear``, or names of linear layers: full ones or their last parts, with ``*`` and ``?``.
        exclude_modules: Names of layers to leave out. ``None``: ``lm_head``.
        train_other: Whether all other parameters are trained too, densely; else they are frozen.
        sparse_grads: Whether only selected entries of gradients are kept. Under DDP gradients are whole until they are
            reduced, and gathered before the step. ``gradient_clip_val`` and ``clip_gradients`` of the module reach the
            vectors; functions of PyTorch that look at ``grad`` find None there.
        log_mask_churn: Whether the share of replaced entries is logged.
        save_delta: Whether what was trained is written to ``lift_delta.safetensors`` in the Trainer's ``log_dir`` when
            the fit ends. ``functional.lift_delta.load_delta`` adds it to the original weights. It holds nothing else,
            so ``train_other`` is refused beside it.

    Raises:
        ValueError: If a name fits no linear layer, nothing is left, or a matrix cannot be trained in place: it is
            quantized, frozen, parametrized or without values.
        ShardedParameterError: If a matrix is sharded (FSDP2).

    Source: Liu, Pang, Balabanov, Yang, Huang, Yin, Yang, Liu, 2025, arXiv:2506.00772. The released code keeps whole
    gradients of all layers.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> LIFTFinetuning(exclude_modules=["2"]).attach(model)
        >>> [name for name, param in model.named_parameters() if param.requires_grad]
        ['0.weight']

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.LIFTFinetuning
              init_args: {target_modules: [q_proj, v_proj]}
        ```
    """

    def __init__(
        self,
        target_modules: str | list[str] = ALL_LINEAR,
        exclude_modules: list[str] | None = None,
        train_other: bool = False,
        sparse_grads: bool = True,
        log_mask_churn: bool = True,
        save_delta: bool = False,
    ) -> None:
        excluded = UNLESS_GIVEN if exclude_modules is None else exclude_modules
        self.target_modules = target_names(target_modules)
        self.exclude_modules = name_list("exclude_modules", excluded, " or None")
        self.train_other = train_other
        self.sparse_grads = sparse_grads
        self.log_mask_churn = log_mask_churn
        self.save_delta = save_delta
        self.churn = 0.0
        self._reset()

    def _reset(self) -> None:
        self._targets: dict[str, nn.Parameter] = {}
        self._frozen: list[nn.Parameter] = []
        self._owners: dict[str, Any] = {}
        self._selected: dict[str, Tensor] = {}
        self._originals: dict[str, dict[str, Tensor]] = {}
        self._restored: list[str] | None = None
        self._gradients = SparseGradients()
        self._watches: list[Any] = []
        self._stepped = False

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the targets, the last churn and, for a delta, the original values of entries selected so far."""
        return {"targets": list(self._targets), "churn": self.churn, "originals": self._originals}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._restored, self.churn = list(state_dict["targets"]), state_dict["churn"]
        self._originals = {name: dict(known) for name, known in state_dict["originals"].items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for the matrices to be marked as soon as the network is built."""
        if stage == "fit":
            self._let_go()
            self._reset()
            self.churn = 0.0
            inject_when_built(pl_module, self.attach)

    def attach(self, module: nn.Module) -> None:
        """Mark the matrices and freeze the rest.

        A Trainer does this itself. It is for loops of one's own, where gradients stay whole.

        Args:
            module: Network or LightningModule.

        Raises:
            ValueError: If a name fits no linear layer, nothing is left, or a matrix cannot be trained in place.
            ShardedParameterError: If a matrix is sharded.
        """
        if self.exclude_modules != UNLESS_GIVEN:
            check_excluded(module, self.exclude_modules)
        targets = sparse_targets(module, self.target_modules, self.exclude_modules)
        chosen = {id(param) for param in targets.values()}
        for name, param in module.named_parameters():
            clear(param)
            if id(param) in chosen:
                mark(param, name)
            elif param.requires_grad and not self.train_other:
                param.requires_grad_(False)
                self._frozen.append(param)
        self._targets = {plain_name(name): param for name, param in targets.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the optimizers choose entries, unless a checkpoint has, and begin to watch gradients and steps.

        Raises:
            ValueError: If a matrix is in no ``LIFTAdamW``, or the checkpoint has other matrices or no original values.
        """
        if self._restored is not None and self._restored != list(self._targets):
            raise ValueError(
                f"the checkpoint fine-tunes {', '.join(self._restored)}, but target_modules and exclude_modules choose "
                f"{', '.join(self._targets)}; resume with the same choice, or begin a fit without ckpt_path"
            )
        if self._restored and self.save_delta and not self._originals:
            raise ValueError(
                "save_delta is True, but the checkpoint was saved without it, and does not know the original values; "
                "resume with save_delta=False, or load its weights and begin a fit without ckpt_path"
            )
        self._restored = None
        self._owners = self._find_owners(trainer)
        for optimizer in dict.fromkeys(self._owners.values()):
            optimizer.select()
            self._watches.append(optimizer.register_step_post_hook(self._after_step))
        for name, param in self._targets.items():
            # with selector="gradient" entries are chosen at the first step
            if "idx" in self._owners[name].state.get(param, {}):
                self._note(name, self._owners[name].selection(param))
        if self.sparse_grads:
            # DDP reduces whole gradients, and only with the last batch of an accumulation
            hooks = not isinstance(trainer.strategy.model, DistributedDataParallel)
            owners = {param: self._owners[name] for name, param in self._targets.items()}
            self._gradients.watch(owners, hooks)
            self._watches.append(ClipsVectors(trainer.precision_plugin, self._gradients))

    def _find_owners(self, trainer: Trainer) -> dict[str, Any]:
        ours = [optimizer for optimizer in trainer.optimizers if hasattr(optimizer, "selection")]
        groups = [(optimizer, group) for optimizer in ours for group in optimizer.param_groups]
        owners = {id(param): optimizer for optimizer, group in groups for param in group["params"]}
        if missing := [name for name, param in self._targets.items() if id(param) not in owners]:
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none"
            raise ValueError(
                f"LIFTFinetuning chose {', '.join(missing)}, which no LIFTAdamW trains; the optimizers are {names}. "
                f"Return lightning_weights.optimizers.LIFTAdamW(self.parameters()) from configure_optimizers"
            )
        if self.save_delta and self.train_other:
            raise ValueError(
                "save_delta and train_other are both True, and a delta holds matrices alone; set one of them to False"
            )
        if self.save_delta and any(group["selector"] == "gradient" for _, group in groups):
            raise ValueError(
                "save_delta is True, but selector='gradient' chooses entries in the step that changes them, so that "
                "their original values are not known; use another selector, or save_delta=False"
            )
        return {name: owners[id(param)] for name, param in self._targets.items()}

    def _note(self, name: str, selected: Tensor) -> None:
        self._selected[name] = selected
        if not self.save_delta:
            return
        param = self._targets[name]
        none = {"indices": selected[:0], "values": gather_entries(param.detach(), selected[:0])}
        known = {key: value.to(param.device) for key, value in self._originals.get(name, none).items()}
        indices, values = remember_originals(known["indices"], known["values"], selected, param)
        self._originals[name] = {"indices": indices, "values": values}

    def _after_step(self, optimizer: Any, *arguments: Any) -> None:
        self._stepped = True
        self._gradients.note_step(optimizer)
        replaced, total = 0.0, 0
        for name, param in self._targets.items():
            if self._owners[name] is not optimizer or "idx" not in optimizer.state.get(param, {}):
                continue
            selected, before = optimizer.selection(param), self._selected.get(name)
            if selected is before:
                continue
            if before is not None:
                replaced += mask_churn(before, selected) * len(selected)
                total += len(selected)
            self._note(name, selected)
        if total:
            self.churn = replaced / total

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Clear the place where autograd puts the next gradients."""
        self._gradients.hide()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the vectors to the gradient scaler, if there is one."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            self._gradients.show()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Gather what is whole still."""
        self._gradients.hide()
        self._gradients.gather(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        stepped, self._stepped = self._stepped, False
        if not (stepped and self.log_mask_churn and trainer.log_every_n_steps):
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log("weights/lift/mask_churn", self.churn, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was trained, if asked to."""
        if self.save_delta:
            folder = trainer.log_dir or trainer.default_root_dir  # asks all processes
            if trainer.is_global_zero:
                self.export_delta(pl_module, Path(folder) / DELTA_FILE)

    def export_delta(self, module: nn.Module, path: str | Path) -> None:
        """Write what was trained to a safetensors file, as the end of a fit does with ``save_delta``.

        Args:
            module: The module of the fit, or one with the same names of parameters.
            path: File to write.

        Raises:
            ValueError: If no entry is remembered.
            MissingDependencyError: If safetensors is not installed.
        """
        if not self._originals:
            raise ValueError(
                "no entry is remembered: save_delta was False, or no fit has begun; use LIFTFinetuning(save_delta=True)"
            )
        params = {plain_name(name): param for name, param in module.named_parameters()}
        changes = {}
        for name, known in self._originals.items():
            after = gather_entries(params[name].detach(), known["indices"].to(params[name].device))
            changes[name] = SparseChange(known["indices"], known["values"], after, params[name].shape)
        save_delta(path, changes)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was found."""
        release(pl_module)
        self._let_go()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take back marks, hooks and freezing."""
        self._let_go()

    def _let_go(self) -> None:
        self._gradients.stop()
        for watch in self._watches:
            watch.remove()
        for param in self._targets.values():
            clear(param)
        for param in self._frozen:
            param.requires_grad_(True)
        self._watches, self._frozen, self._owners, self._selected = [], [], {}, {}
