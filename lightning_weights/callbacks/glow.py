"""When GLOW's loss learns which samples it sees, when processes exchange what they saw, and what is logged."""

import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_weights.callbacks._lean_callback import LeanCallback
from lightning_weights.callbacks._real_steps import RealSteps
from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.glow import check_glow, label_checksums
from lightning_weights.modules import GLOWLoss

IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"  # where DDP looks


class GLOW(LeanCallback):
    r"""Weigh the samples of a LightningModule by how little their losses have fallen since they were last seen.

    $$L = \frac{1}{B} \sum_i w_i \ell_i, \qquad
    w_i = \operatorname{clip}\bigl(\alpha\,(1 - \sigma(\beta\,(H_i - \ell_i))),\ w_\text{min},\ w_\text{max}\bigr)$$

    The module gets a `modules.GLOWLoss` as its attribute ``glow``, if it has none of its own, and its ``training_step``
    returns ``self.glow(losses)`` of one loss per sample. The callback tells that loss the ids of every batch and the
    epoch, exchanges losses between processes after every batch, and logs ``weights/glow/`` ``mean_weight``,
    ``mean_gain`` and ``frac_regressing`` (the last two over samples that were seen before) once per optimizer step.

    ``data.IndexedDataset`` puts ids into batches. ``modules.PerSampleLM`` is a language model that needs nothing else.
    The table of losses is saved with the module, in the checkpoint's ``state_dict``.

    Args:
        loss_attr: Name of the attribute.
        id_key: Key of the ids in a batch, or their place in one that is a sequence; -1: the last.
        sync: Whether processes exchange their losses after every batch. False: every process knows the samples it has
            seen itself, which is right if it sees the same ones in every epoch, and checkpoints hold what the first
            process has seen.
        keep_ids: Whether the ids stay in the batch. False: they are taken out, for modules that hand the whole batch to
            a network.
        check_ids: Whether to check that a sample always has the same labels, to find ids that two files share. Makes
            the host wait for every batch.
        label_key: Key or place of the labels, for ``check_ids``.
        num_samples: Samples in the training data; 0: the table grows with the ids, in a single process.
        alpha: α: a sample whose loss stays gets α/2.
        beta: β: how fast weights fall with gains.
        min_weight: Smallest weight.
        max_weight: Largest weight.
        warmup_epochs: Epochs without weights.
        fallback: What a sample is compared with that was never seen before: ``neutral`` or ``batch_mean``.
        normalize: Whether weights are divided by their mean over the batch.
        ignore_index: Label of what is not predicted.

    Raises:
        ValueError: If a number is out of range, the attribute is something else, the module's own loss has other
            arguments than those given here, or, in training, a batch has no ids.

    Warns:
        LightningWeightsWarning: If there are too few epochs for the weights to act, or the module does not use its
            loss.

    Source: Tian et al. 2026, arXiv:2601.04992.

    Examples:
        >>> GLOW(alpha=1.0, beta=20.0).beta
        20.0

        ```yaml
        trainer:
          callbacks:
            - class_path: lightning_weights.callbacks.GLOW
              init_args: {alpha: 2.0, beta: 10.0}
        ```
    """

    def __init__(
        self,
        loss_attr: str = "glow",
        id_key: int | str = "sample_id",
        sync: bool = True,
        keep_ids: bool = True,
        check_ids: bool = False,
        label_key: int | str = "labels",
        num_samples: int = 0,
        alpha: float = 2.0,
        beta: float = 10.0,
        min_weight: float = 0.5,
        max_weight: float = 5.0,
        warmup_epochs: int = 1,
        fallback: Literal["neutral", "batch_mean"] = "neutral",
        normalize: bool = False,
        ignore_index: int = -100,
    ) -> None:
        check_number("num_samples", num_samples, low=0, whole=True)
        check_number("warmup_epochs", warmup_epochs, low=0, whole=True)
        check_glow(alpha, beta, min_weight, max_weight, fallback)
        flags = {"sync": sync, "keep_ids": keep_ids, "check_ids": check_ids, "normalize": normalize}
        for name, value in flags.items():
            check_choice(name, value, [True, False])
        if not loss_attr.isidentifier():
            raise ValueError(f"loss_attr is {loss_attr!r}; allowed is the name of an attribute, such as 'glow'")
        self.loss_attr = loss_attr
        self.id_key = id_key
        self.sync = sync
        self.keep_ids = keep_ids
        self.check_ids = check_ids
        self.label_key = label_key
        self.num_samples = num_samples
        self.alpha = alpha
        self.beta = beta
        self.min_weight = min_weight
        self.max_weight = max_weight
        self.warmup_epochs = warmup_epochs
        self.fallback = fallback
        self.normalize = normalize
        self.ignore_index = ignore_index
        self._reset()

    def _reset(self) -> None:
        self._steps = RealSteps()
        self._sums: Tensor | None = None
        self._checksums: dict[int, int] = {}
        self._used: bool | None = None  # no batch yet, as in an epoch that is resumed at its end

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints; one per attribute."""
        return self._generate_state_key(loss_attr=self.loss_attr)

    def state_dict(self) -> dict[str, Any]:
        """Return the checksums of the labels of the samples that were checked."""
        return {"checksums": torch.tensor(list(self._checksums.items()), dtype=torch.int64).reshape(-1, 2)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._checksums = dict(state_dict["checksums"].tolist())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its loss, or check the one that it has."""
        self._steps.stop()
        self._reset()
        loss = getattr(pl_module, self.loss_attr, None)
        if not self.sync:  # else DDP would give every process the table of the first one before every batch
            ignored = getattr(pl_module, IGNORED_BY_DDP, ())
            setattr(pl_module, IGNORED_BY_DDP, sorted({*ignored, f"{self.loss_attr}.history"}))
        if loss is None:
            setattr(pl_module, self.loss_attr, GLOWLoss(**self._settings()).to(pl_module.device))
            return
        if not isinstance(loss, GLOWLoss):
            raise ValueError(
                f"loss_attr is {self.loss_attr!r}, and {type(pl_module).__name__}.{self.loss_attr} is a "
                f"{type(loss).__name__}; allowed is a modules.GLOWLoss, or a name that is free"
            )
        defaults = GLOWLoss()
        for name, value in self._settings().items():
            theirs = getattr(loss, name)
            if value not in (theirs, getattr(defaults, name)):
                raise ValueError(
                    f"{name} is {value!r} in GLOW and {theirs!r} in {type(pl_module).__name__}.{self.loss_attr}; give "
                    f"it to the loss alone, or let GLOW make the loss"
                )

    def _settings(self) -> dict[str, Any]:
        return {
            "num_samples": self.num_samples,
            "alpha": self.alpha,
            "beta": self.beta,
            "min_weight": self.min_weight,
            "max_weight": self.max_weight,
            "warmup_epochs": self.warmup_epochs,
            "fallback": self.fallback,
            "normalize": self.normalize,
            "ignore_index": self.ignore_index,
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that weights will act."""
        epochs, warmup = trainer.max_epochs, getattr(pl_module, self.loss_attr).warmup_epochs
        if trainer.is_global_zero and epochs is not None and 0 <= epochs <= warmup:
            warnings.warn(
                f"the Trainer's max_epochs is {epochs}, and the first {warmup} are without weights: GLOW changes "
                f"nothing. It needs samples to be seen again",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to notice steps."""
        self._steps.watch(trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the loss the ids and the epoch."""
        loss = getattr(pl_module, self.loss_attr)
        loss.last = None
        self._used = self._used or False
        ids, missing = self._find(batch, self.id_key)
        loss.provide(ids, trainer.current_epoch, missing)
        if self.check_ids and ids is not None:
            self._compare(ids, batch, loss.ignore_index)
        if not self.keep_ids and ids is not None:
            if not isinstance(batch, MutableMapping):
                raise ValueError(
                    f"keep_ids is False, and the batch is a {type(batch).__name__}; ids can be taken out of dicts only"
                )
            del batch[self.id_key]

    def _find(self, batch: Any, key: int | str) -> tuple[Tensor | None, str]:
        """Return an entry of a batch, or ``None`` and what there is instead."""
        if isinstance(key, str) and isinstance(batch, Mapping):
            found, there = batch.get(key), f"the keys {', '.join(map(str, batch))}"
        elif isinstance(key, int) and isinstance(batch, Sequence):
            found, there = batch[key] if -len(batch) <= key < len(batch) else None, f"{len(batch)} parts"
        else:
            found, there = None, f"the type {type(batch).__name__}"
        if isinstance(found, Tensor):
            return found, ""
        return None, (
            f"the batch has no tensor {key!r}, it has {there}. Wrap the training data in data.IndexedDataset, tell "
            f"GLOW where ids are (id_key), or call the loss with ids"
        )

    def _compare(self, ids: Tensor, batch: Any, ignore_index: int) -> None:
        labels, missing = self._find(batch, self.label_key)
        if labels is None:
            raise ValueError(f"check_ids is True, but label_key is {self.label_key!r}: {missing}")
        for sample, checksum in zip(ids.tolist(), label_checksums(labels, ignore_index).tolist(), strict=True):
            if self._checksums.setdefault(sample, checksum) != checksum:
                raise ValueError(
                    f"sample {sample} has other labels than before: two samples share an id, as when files are "
                    f"numbered one by one. Put data.IndexedDataset around the concatenated data"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exchange losses, and log after real steps only."""
        loss = getattr(pl_module, self.loss_attr)
        loss.provide(None, trainer.current_epoch)
        if self.sync:
            loss.synchronise()
        if loss.last is not None:
            self._used = True
            sums = loss.last.sums()
            self._sums = sums if self._sums is None else self._sums + sums
        if self._steps.taken() and self._sums is not None:
            weight, count, gain, seen, regressing = self._sums.unbind()
            values = {
                "mean_weight": weight / count,
                "mean_gain": gain / seen.clamp(min=1),
                "frac_regressing": regressing / seen.clamp(min=1),
            }
            pl_module.log_dict({f"weights/glow/{name}": value for name, value in values.items()}, on_epoch=False)
            self._sums = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notice a module that never asks for its loss."""
        if self._used is False and trainer.is_global_zero:
            warnings.warn(
                f"{type(pl_module).__name__} did not use its {self.loss_attr} in this epoch: nothing is weighted. "
                f"Return self.{self.loss_attr}(losses) of one loss per sample from training_step",
                LightningWeightsWarning,
                stacklevel=2,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off."""
        self._steps.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._steps.stop()
