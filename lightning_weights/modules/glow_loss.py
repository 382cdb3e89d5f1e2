"""The loss of GLOW: a table of what every sample's loss was, and weights from how much it has fallen."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_weights.errors import LightningWeightsWarning, check_choice, check_number
from lightning_weights.functional.glow import check_glow, latest, next_token_losses, weigh
from lightning_weights.functional.rows_of_processes import rows_of_processes, several_processes


class GLOWStep(NamedTuple):
    """What a loss saw in its last batch, all without gradients.

    Attributes:
        ids: Samples, (B,).
        losses: Their losses.
        weights: Their weights.
        gains: How much each loss has fallen since the last visit, 0 for samples that weren't seen before.
        seen: Which samples were seen before.

    Examples:
        >>> loss = GLOWLoss(num_samples=3)
        >>> _ = loss(torch.tensor([0.5, 0.7]), torch.tensor([2, 0]), epoch=0)
        >>> loss.last.weights
        tensor([1., 1.])
    """

    ids: Tensor
    losses: Tensor
    weights: Tensor
    gains: Tensor
    seen: Tensor

    def sums(self) -> Tensor:
        """Return five sums: weights, samples, gains, samples seen before, and those of them whose loss has risen."""
        parts = self.weights, torch.ones_like(self.weights), self.gains, self.seen, self.seen & (self.gains < 0)
        return torch.stack([part.float().sum() for part in parts])


class GLOWLoss(nn.Module):
    r"""Weigh samples by how little their losses have fallen since they were last seen.

    $$L = \frac{1}{B} \sum_i w_i \ell_i, \qquad
    w_i = \operatorname{clip}\bigl(\alpha\,(1 - \sigma(\beta\,(H_i - \ell_i))),\ w_\text{min},\ w_\text{max}\bigr),
    \qquad H_i \leftarrow \ell_i$$

    What is mastered is damped, what stagnates or regresses is boosted. The table H is the buffer ``history``: one
    number per sample, NaN before its first visit, saved with the module, in fp32 also when the module is cast. In the
    first ``warmup_epochs`` epochs all weights are 1. Weights have no gradient. In evaluation mode the loss is the plain
    mean and the table stays as it is.

    Losses that aren't finite don't enter the table. Of a sample that occurs twice in a batch the last loss does. With
    several processes the table is complete after `synchronise`, which the callback ``GLOW`` calls after every batch.

    Args:
        num_samples: Samples in the training data; ids are from 0 to ``num_samples`` - 1. 0: the table grows with the
            ids, which breaks compiled graphs and needs a single process.
        alpha: α: a sample whose loss stays gets α/2. With 2, training on a plateau is as without the method.
        beta: β: how fast weights fall with gains; 0: not at all.
        min_weight: Smallest weight.
        max_weight: Largest weight.
        warmup_epochs: Epochs without weights.
        fallback: What a sample is compared with that was never seen before: its own loss now, so that its weight is
            α/2 (``neutral``), or the mean loss of this process's part of the batch (``batch_mean``, as the released
            code has it).
        normalize: Whether weights are divided by their mean over this process's part of the batch, which separates the
            weighting from the smaller steps that weights below 1 make.
        ignore_index: Label of what is not predicted.

    Raises:
        ValueError: If a number is out of range.

    Source: Tian et al. 2026, arXiv:2601.04992. ``neutral`` and ``normalize`` are ours.

    Examples:
        >>> import torch
        >>> loss, ids = GLOWLoss(num_samples=2), torch.tensor([0, 1])
        >>> loss(torch.tensor([1.0, 1.0]), ids, epoch=0)
        tensor(1.)
        >>> loss(torch.tensor([0.5, 1.0]), ids, epoch=1)  # the first sample has improved: half its weight
        tensor(0.6250)
        >>> loss.history
        tensor([0.5000, 1.0000])
    """

    history: Tensor

    def __init__(
        self,
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
        check_choice("normalize", normalize, [True, False])
        super().__init__()
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.min_weight = float(min_weight)
        self.max_weight = float(max_weight)
        self.warmup_epochs = warmup_epochs
        self.fallback = fallback
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.num_samples = num_samples
        self.register_buffer("history", torch.full((num_samples,), math.nan, dtype=torch.float32))
        self.last: GLOWStep | None = None
        self._ids: Tensor | None = None
        self._acts: bool | None = None
        self._missing = "give them as the second argument, or use the callback GLOW"
        self._warned: set[str] = set()

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f"num_samples={self.num_samples}, alpha={self.alpha}, beta={self.beta}"

    def provide(self, ids: Tensor | None, epoch: int, missing: str = "") -> None:
        """Tell the samples and the epoch of the batch to come, so that ``forward`` needs the losses alone.

        Args:
            ids: Samples of the batch; ``None``: not known.
            epoch: Epoch, from 0.
            missing: Why they aren't known, for the message.
        """
        self._ids = ids
        self._acts = epoch >= self.warmup_epochs  # a truth value: compiled graphs would be made anew for every number
        self._missing = missing or self._missing

    def per_sample_cross_entropy(
        self, logits: Tensor, labels: Tensor, segments: Tensor | None = None, num_samples: int | None = None
    ) -> Tensor:
        """Return the loss of every sample of a language model: the mean over its predicted tokens, in fp32.

        Args:
            logits: Logits (B, T, V); those at t predict the label at t + 1.
            labels: Labels (B, T), unshifted, ``ignore_index`` in prompts and padding.
            segments: Which sample of the batch each token belongs to, (B, T), if several are packed into a sequence; -1
                in padding.
            num_samples: How many samples there are in the batch, if ``segments`` is given.
        """
        losses = next_token_losses(
            logits, labels, ignore_index=self.ignore_index, segments=segments, num_samples=num_samples
        )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and segments is None:
            predicted = (labels[:, 1:] != self.ignore_index).any(dim=1)
            if not bool(predicted.all()):
                self._warn(
                    "a sample has no token to predict: its loss is 0 and counts in the mean. Leave such samples out"
                )
        return losses

    def forward(self, per_sample_loss: Tensor, ids: Tensor | None = None, epoch: int | None = None) -> Tensor:
        """Return the weighted mean of a batch and remember its losses.

        Args:
            per_sample_loss: Losses of the samples, (B,).
            ids: Which samples they are, (B,), whole numbers; ``None``: those that the callback ``GLOW`` has found.
            epoch: Epoch, from 0; ``None``: that of the callback ``GLOW``.

        Raises:
            ValueError: If the losses are no vector, or, in training, ids are missing, no whole numbers or, on the CPU,
                out of range.
        """
        if per_sample_loss.ndim != 1:
            raise ValueError(
                f"per_sample_loss has shape {tuple(per_sample_loss.shape)}; allowed is one loss per sample, (B,): use "
                f"reduction='none', and for a language model per_sample_cross_entropy(logits, labels)"
            )
        if not self.training:
            return per_sample_loss.mean()
        ids, acts = self._checked(per_sample_loss, ids, epoch)
        if self.num_samples == 0:
            self._make_room(ids)
        previous = self.history.index_select(0, ids)
        found = weigh(
            per_sample_loss,
            previous,
            alpha=self.alpha,
            beta=self.beta,
            min_weight=self.min_weight,
            max_weight=self.max_weight,
            fallback=self.fallback,
            normalize=self.normalize,
        )
        weights = found.weights if acts else torch.ones_like(found.weights)
        losses = per_sample_loss.detach()
        self.history.index_copy_(0, ids, latest(ids, losses, previous))
        self.last = GLOWStep(ids, losses, weights, found.gains, found.seen)
        return (weights * per_sample_loss).mean()

    @torch.no_grad()
    def synchronise(self) -> None:
        """Put what all processes have seen in their last batches into the table of each; the same table everywhere.

        If a sample occurs in the batches of several processes, the last of them wins. Every process has to call it.
        ``last`` is then that of all processes together.

        Without a group of several processes nothing happens.
        """
        if not several_processes():
            return
        device = self.history.device
        columns = self.last or GLOWStep(*(torch.zeros(0, device=device) for _ in GLOWStep._fields))
        # in fp64, which holds ids exactly, so that one exchange is enough
        rows = rows_of_processes(torch.stack([column.double() for column in columns], dim=1))
        ids, losses, weights, gains, seen = rows.unbind(dim=1)
        ids = ids.long()
        self.last = GLOWStep(ids, losses.float(), weights.float(), gains.float(), seen.bool())
        self.history.index_copy_(0, ids, latest(ids, losses, self.history.index_select(0, ids)))

    def _checked(self, losses: Tensor, ids: Tensor | None, epoch: int | None) -> tuple[Tensor, bool]:
        """Return ids on the table's device, and whether the weights act."""
        ids = self._ids if ids is None else ids
        acts = self._acts if epoch is None else epoch >= self.warmup_epochs
        if ids is None:
            raise ValueError(f"the ids of the samples are missing: {self._missing}")
        if acts is None:
            raise ValueError("epoch is None; give the number of the epoch, or use the callback GLOW")
        if ids.shape != losses.shape:
            raise ValueError(
                f"ids has shape {tuple(ids.shape)} for {len(losses)} losses; allowed is one id per loss. If several "
                f"samples are packed into a sequence, give segments to per_sample_cross_entropy"
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids is {ids.dtype}; allowed are whole numbers, as from data.IndexedDataset")
        if ids.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
            self._look_at(ids)
        return ids.long().to(self.history.device), acts

    def _look_at(self, ids: Tensor) -> None:
        # Elsewhere looking would make the host wait; there the lookup fails with an assertion of the device.
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or (self.num_samples and high >= self.num_samples):
            allowed = f"0 to {self.num_samples - 1}" if self.num_samples else "numbers from 0"
            raise ValueError(
                f"ids has values from {low} to {high}; allowed are {allowed}: give GLOWLoss the length of the training "
                f"data as num_samples, and count samples over all files"
            )
        if len(ids.unique()) < len(ids):
            self._warn("a sample occurs twice in a batch: the table remembers its last loss")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, LightningWeightsWarning, stacklevel=3)

    def _make_room(self, ids: Tensor) -> None:
        if several_processes():
            raise ValueError(
                "num_samples is 0, which lets the table grow, but there are several processes, whose tables must have "
                "one size; give the length of the training data as num_samples"
            )
        needed, size = int(ids.max()) + 1 if ids.numel() else 0, len(self.history)
        if needed > size:
            room = self.history.new_full((max(needed, 2 * size) - size,), math.nan)
            self.history = torch.cat([self.history, room])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GLOWLoss":
        table = self.history
        super()._apply(fn, recurse)
        if self.history.dtype != table.dtype:  # narrow numbers would hide small gains
            self.history = table.to(self.history.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        saved = state_dict.get(f"{prefix}history")
        if self.num_samples == 0 and isinstance(saved, Tensor):
            self.history = self.history.new_full(saved.shape, math.nan)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
