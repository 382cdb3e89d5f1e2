"""When and where Bone's blocks are put into a network, and what its checkpoints hold."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_weights.callbacks._adapter_checkpoints import (
    check_base,
    check_when_loading,
    drop_frozen,
    frozen_parameters,
    keep_frozen_when_loading,
)
from lightning_weights.callbacks._bone_checkpoints import check_blocks, check_variant, descriptions
from lightning_weights.callbacks._bone_layers import (
    block_sizes,
    bone_layers,
    check_same,
    layers_to_adapt,
    merge_layers,
    put_adapter,
    put_blocks,
    ranks_of,
    warn_if_decayed,
)
from lightning_weights.callbacks._injection import check_trained, inject_when_built, release
from lightning_weights.callbacks._replacement import saved_modules
from lightning_weights.callbacks._targets import ALL_LINEAR, target_names
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number, name_list
from lightning_weights.functional.bone import VARIANTS, grid_sizes
from lightning_weights.functional.fingerprint import fingerprint, plain_name
from lightning_weights.modules.bone_files import read_bone_adapter


class BoneFinetuning(Callback):
    r"""Fine-tune a network through one small trainable tensor per linear layer, which steers the frozen weight.

    $$W'_{ab} = W_{ab} (I + B_a) + B_a$$

    Every parameter of the module is frozen. The chosen layers become ``BoneLinear``, whose blocks B start at zero, so
    that nothing changes until the first step. That happens before optimizers exist, in ``fit``; ``validate``, ``test``
    and ``predict`` do it if they load a checkpoint that has blocks.

    Checkpoints hold blocks, ``modules_to_save`` and buffers, and say which variant and which network they belong to;
    another variant or another network is refused before any weight is loaded.

    Every ``log_every_n_steps`` steps it logs ``weights/bone/`` ``block_norm``, the norm of all blocks together, and
    ``block_max``, their largest entry.

    Args:
        r: Size of the blocks, a divisor of the layers' sizes (``miss`` pads the inputs instead).
        variant: How blocks act: ``col`` (the paper's), ``row``, ``left``, ``miss``, ``mini`` or ``free``, see
            ``BoneLinear``.
        target_modules: Layers to adapt: names, or last parts of names, with ``*`` and ``?``; ``all-linear`` for all but
            a language model's output.
        exclude_modules: Layers to leave out, as in ``target_modules``.
        rank_pattern: Other block sizes for some layers, by name as in ``target_modules``; the first that fits counts.
        modules_to_save: Modules that are trained whole and saved, such as a new classifier; they get no blocks.
        grid: Numbers of blocks along outputs and inputs, for ``free``.
        mini_r: Number of columns that ``mini`` repeats along the outputs.
        dropout: Dropout on the inputs of the blocks, for variants that do not build W'.
        keep: How long the W' of ``col`` and ``free`` is kept, see ``BoneLinear``; ``step`` saves time with accumulated
            gradients.
        merge_on_fit_end: Whether the fit ends with plain linear layers that hold W'. Checkpoints saved before stay as
            they are.
        save_adapter_only: Whether checkpoints leave the frozen parameters out. Loading needs the same network then.
        from_peft: Folder of a MiSS or Bone adapter that peft has saved: it says which layers, variant and sizes, and
            the blocks start with its values. Leave the arguments that it decides at their defaults.

    Raises:
        ValueError: If an argument is out of range, names no layer, or does not fit a layer; if a checkpoint has another
            variant or network.
        ShardedParameterError: If weights are sharded already (FSDP2).

    Source: Kang 2024, arXiv:2409.15371v3. Differs from the released code: the variant is kept in checkpoints, ``row``
    and ``left`` never build W'.

    Examples:
        >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> BoneFinetuning(r=4, target_modules="0").attach(network)
        >>> [name for name, param in network.named_parameters() if param.requires_grad]
        ['0.bone_block']

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.BoneFinetuning
              init_args: {r: 16, target_modules: [q_proj, v_proj]}
        ```
    """

    def __init__(
        self,
        r: int = 64,
        variant: Literal["col", "row", "left", "miss", "mini", "free"] = "col",
        target_modules: str | list[str] = ALL_LINEAR,
        exclude_modules: Sequence[str] = (),
        rank_pattern: dict[str, int] | None = None,
        modules_to_save: Sequence[str] = (),
        grid: list[int] | None = None,
        mini_r: int = 1,
        dropout: float = 0.0,
        keep: Literal["never", "backward", "step"] = "backward",
        merge_on_fit_end: bool = False,
        save_adapter_only: bool = True,
        from_peft: str | None = None,
    ) -> None:
        check_number("r", r, low=1, whole=True)
        check_choice("variant", variant, VARIANTS)
        check_number("mini_r", mini_r, low=1, whole=True)
        check_number("dropout", dropout, low=0.0, high=1.0)
        check_choice("keep", keep, ("never", "backward", "step"))
        for pattern, rank in (rank_pattern or {}).items():
            check_number(f"rank_pattern[{pattern!r}]", rank, low=1, whole=True)
        self.r = r
        self.variant = variant
        self.target_modules = target_names(target_modules)
        self.exclude_modules = name_list("exclude_modules", exclude_modules)
        self.rank_pattern = dict(rank_pattern or {})
        self.modules_to_save = name_list("modules_to_save", modules_to_save)
        self.grid = None if grid is None else grid_sizes(grid)
        self.mini_r = mini_r
        self.dropout = dropout
        self.keep = keep
        self.merge_on_fit_end = merge_on_fit_end
        self.save_adapter_only = save_adapter_only
        self.from_peft = from_peft
        self._check_from_peft()
        self._reset()

    def _check_from_peft(self) -> None:
        if self.from_peft is None:
            return
        decided = ("r", "variant", "target_modules", "exclude_modules", "rank_pattern", "grid", "mini_r")
        plain: Any = BoneFinetuning()
        if given := [name for name in decided if getattr(self, name) != getattr(plain, name)]:
            raise ValueError(f"from_peft says which layers, variant and sizes there are; leave out {', '.join(given)}")

    def _reset(self) -> None:
        self._layers: dict[str, dict[str, Any]] = {}
        self._frozen: frozenset[str] = frozenset()
        self._base = ""
        self._owner: Callable[[], Any] = lambda: None
        self._without_frozen = False
        self._hooks: list[Callable[[], None]] = []
        self._last_step = 0

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer hangs bound methods of the module on every callback; copies must not drag the module along.
        return {name: value for name, value in vars(self).items() if name not in ("log", "log_dict") and name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Return variant and sizes of every layer, and the fingerprint of the frozen network."""
        return {"layers": self._layers, "base": self._base, "adapter_only": self.save_adapter_only}

    def attach(self, module: nn.Module) -> None:
        """Freeze a network and put the blocks in; layers that have theirs keep them.

        A Trainer does this itself. It is for loops of one's own, before the optimizer is made, for loading a checkpoint
        without a Trainer, and for FSDP2: in ``configure_model``, before ``fully_shard``.

        Args:
            module: Network or LightningModule.
        """
        saved = saved_modules(module, self.modules_to_save)
        sizes, options = {"grid": self.grid, "mini_r": self.mini_r}, {"dropout": self.dropout, "keep": self.keep}
        layers = bone_layers(module)
        if self.from_peft is None:
            targets = layers_to_adapt(module, self.target_modules, self.exclude_modules, saved)
            ranks = ranks_of(list(targets), self.r, self.rank_pattern)
            if layers:
                check_same(layers, ranks, self.variant, sizes, **options)
            else:
                put_blocks(module, ranks, self.variant, sizes, **options)
        elif not layers:
            put_adapter(module, read_bone_adapter(self.from_peft), saved, **options)
        module.requires_grad_(False)
        for name in saved:
            module.get_submodule(name).requires_grad_(True)
        layers = bone_layers(module)
        for layer in layers.values():
            layer.bone_block.requires_grad_(True)
        self._layers = descriptions(layers)
        self._frozen = frozenset(map(plain_name, frozen_parameters(module)))
        self._note_base(module)

    def _note_base(self, module: nn.Module) -> None:
        if self._owner() is not module:  # once for each network: half precision may round it later
            self._base = fingerprint(frozen_parameters(module))
            self._owner = weakref.ref(module)

    def merge(self, module: nn.Module) -> None:
        """Replace the layers with blocks by plain linear layers that hold W', in place.

        Args:
            module: Network or LightningModule.

        Raises:
            ShardedParameterError: If weights are sharded.
        """
        merge_layers(module)
        self._layers, self._owner = {}, lambda: None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Arrange for the blocks to be put in as soon as the network is built, or a checkpoint has some."""
        self._take_hooks_off()
        self._without_frozen = False
        if stage == "fit" or self.from_peft is not None:
            inject_when_built(pl_module, self.attach)
        keep = keep_frozen_when_loading(pl_module, lambda: self._without_frozen)
        self._hooks = [keep.remove, check_when_loading(pl_module, partial(self._look_at, pl_module))]

    def _look_at(self, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Check a checkpoint that is about to be loaded, and make room for what it holds."""
        saved, weights = checkpoint.get("callbacks", {}).get(self.state_key), checkpoint.get("state_dict")
        # without weights in it, ModelParallelStrategy has loaded them already
        if not any(fnmatchcase(key, "*.bone_block") for key in weights) if weights is not None else saved is None:
            return
        if saved is None:
            warnings.warn(
                f"the checkpoint was saved without callbacks (save_weights_only), so that nobody can tell whether its "
                f"blocks are of variant {self.variant!r}",
                LightningWeightsWarning,
                stacklevel=2,
            )
            self.attach(pl_module)
            return
        if self.from_peft is None:
            check_variant(saved, self.variant)
        self.attach(pl_module)
        check_blocks(saved, self._layers)
        self._without_frozen = saved["adapter_only"]
        if self._without_frozen:
            check_base(saved, self._base)
        else:
            self._owner = lambda: None  # the frozen weights come with it

    def _take_hooks_off(self) -> None:
        for take_off in self._hooks:
            take_off()
        self._hooks = []

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._take_hooks_off()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module with its own methods."""
        release(pl_module)
        self._take_hooks_off()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizers."""
        self._note_base(pl_module)
        self._last_step = trainer.global_step
        blocks = {name: layer.bone_block for name, layer in bone_layers(pl_module).items()}
        check_trained(trainer, blocks, "BoneFinetuning")
        if trainer.is_global_zero:
            warn_if_decayed(trainer.optimizers, blocks.values())

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, *optimizer: Any) -> None:
        """Let go of what ``keep="step"`` holds, in whatever way the blocks have changed."""
        if self.keep == "step":
            for layer in bone_layers(pl_module).values():
                layer.forget()

    on_validation_start = on_validation_end = on_before_zero_grad  # averaged weights may be swapped in and out there

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        step, every = trainer.global_step, trainer.log_every_n_steps
        if step == self._last_step or not every or step % every:
            return
        self._last_step, values = step, block_sizes(pl_module)
        pl_module.log_dict({f"weights/bone/{name}": value for name, value in values.items()}, on_epoch=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen parameters out."""
        if self.save_adapter_only and self._layers:
            drop_frozen(pl_module, checkpoint["state_dict"], self._frozen)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, if asked to."""
        if self.merge_on_fit_end:
            self.merge(pl_module)
