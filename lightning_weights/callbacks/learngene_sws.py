"""Starting a fit from a learngene."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.errors import check_number
from lightning_weights.functional.learngene_sws import stage_map
from lightning_weights.modules._layer_stacks import find_stack, spread
from lightning_weights.modules._wrapped import plain
from lightning_weights.modules.learngene import Learngene
from lightning_weights.modules.learngene_expansion import expand


class LearngeneInit(LeanCallback):
    """Give a network the weights of a learngene at the start of a fit, a copy of a stage's block to every layer.

    It works with any LightningModule, unchanged, whose network is built by the start of the fit, with any depth. A fit
    that resumes a checkpoint, and a second fit of the same Trainer, is left as it is, which needs no file.

    Every ``log_every_n_steps`` steps it logs ``weights/learngene_sws/spread``: how far layers that began with the same
    weights are from each other, relative to their size; 0 at the start.

    Args:
        path: File that ``Learngene.save`` has written.
        layers: Name of the stack of layers in the network. ``None``: as in the file.
        mapping: Stage of every layer. ``None``: [`stage_map`][lightning_weights.functional.learngene_sws.stage_map].
        copy_head: Whether the head is copied; for other classes it is not.
        resize_positions: Whether position embeddings are stretched to another image size.
        network: Name of the submodule that is the network; empty for the module itself, ``None`` for its only child
            with weight matrices.

    Raises:
        ValueError: If an argument is of another type; at the start of a fit, if the file is not there or does not fit
            the network, with everything that differs.
        MissingDependencyError: At the start of a fit, if the package safetensors is not installed.

    Source: Xia et al. 2024, arXiv:2404.16897.

    Examples:
        >>> LearngeneInit("learngene.safetensors", mapping=[0, 0, 1, 2]).mapping
        [0, 0, 1, 2]

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.LearngeneInit
              init_args: {path: learngene.safetensors}
        ```
    """

    def __init__(
        self,
        path: str,
        layers: str | None = None,
        mapping: list[int] | None = None,
        copy_head: bool = True,
        resize_positions: bool = False,
        network: str | None = None,
    ) -> None:
        if mapping is not None:
            if isinstance(mapping, str) or not isinstance(mapping, Sequence) or not mapping:
                raise ValueError(f"mapping is {mapping!r}; allowed is a list with the stage of every layer, or None")
            for layer, stage in enumerate(mapping):
                check_number(f"mapping[{layer}]", stage, low=0, whole=True)
        self.path = str(path)
        self.layers = layers
        self.mapping = None if mapping is None else list(mapping)
        self.copy_head = copy_head
        self.resize_positions = resize_positions
        self.network = network
        self.stack = ""
        self.stages: list[int] = []
        self._reset()

    def _reset(self) -> None:
        self._steps = RealSteps()
        self._families: list[list[nn.Module]] = []

    @property
    def state_key(self) -> str:
        """Key in checkpoints, one per network."""
        return self._generate_state_key(network=self.network, layers=self.layers)

    def state_dict(self) -> dict[str, Any]:
        """Return where the layers stand, and from which stage each has begun."""
        return {"stack": self.stack, "stages": list(self.stages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what a checkpoint's layers began with."""
        self.stack, self.stages = state_dict["stack"], list(state_dict["stages"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the learngene, unless the fit goes on with what was trained before."""
        # not in setup: the Trainer tells later which checkpoint it resumes
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            rank_zero_info(
                f"LearngeneInit leaves the weights as they are: the fit goes on, and {self.path} is not read"
            )
            return
        network = self._find_network(pl_module)
        learngene = Learngene.load(self.path)
        if self.layers is not None:
            learngene = replace(learngene, layers=self.layers)
        expand(
            learngene,
            mapping=self.mapping,
            copy_head=self.copy_head,
            network=network,
            resize_positions=self.resize_positions,
        )
        depth = len(find_stack(network, learngene.layers).blocks)
        self.stack = learngene.layers
        self.stages = stage_map(depth, len(learngene.stages)) if self.mapping is None else list(self.mapping)

    def _find_network(self, pl_module: LightningModule) -> nn.Module:
        modules = dict(pl_module.named_modules())
        children = [name for name, part in pl_module.named_children() if any(p.ndim >= 2 for p in part.parameters())]
        name = children[0] if self.network is None and len(children) == 1 else self.network
        if name not in modules:
            raise ValueError(
                f"network is {self.network!r}; allowed is the name of a submodule of {type(pl_module).__name__}, '' "
                f"for itself: its children with weight matrices are {', '.join(children) or 'none'}"
            )
        return plain(modules[name])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers that began alike, and begin to note the optimizers' steps."""
        self._steps.watch(trainer.optimizers)
        if self.stages:
            blocks = find_stack(self._find_network(pl_module), self.stack).blocks
            families = [
                [block for block, stage in zip(blocks, self.stages, strict=True) if stage == wanted]
                for wanted in sorted(set(self.stages))
            ]
            self._families = [family for family in families if len(family) > 1]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, after real steps only."""
        stepped = self._steps.taken()
        if not stepped or not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        if self._families:
            pl_module.log("weights/learngene_sws/spread", spread(self._families), on_epoch=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off the optimizers."""
        self._steps.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the layers and the optimizers."""
        self._steps.stop()
        self._families = []
