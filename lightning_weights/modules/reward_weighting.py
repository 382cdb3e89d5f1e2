"""Weights of objectives that follow the gradients of the objectives."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_weights.errors import ShardedParameterError, check_choice, check_number, name_list
from lightning_weights.functional.dynamic_reward import checked_weights, influence, update_log_weights
from lightning_weights.kernels.gradient_gram import gradient_gram

NORMALIZATIONS = ("clip", "unit", "none")


class RewardWeighting(nn.Module):
    r"""Move weights towards the objectives whose gradients serve all of them.

    $$I_k = \sum_j \langle g_k, g_j \rangle, \qquad w \leftarrow \mathrm{softmax}(\log w + \eta\, \bar I)$$

    For any training loop: ``update`` takes the gradients of all objectives and returns the weights. Under DDP they have
    to be averages over processes; of sharded ones (FSDP2) inner products are added up over processes. The state is a
    few numbers in fp64: the logarithms of the weights, the influences since the last update, and how many they are.

    Args:
        objectives: Names of the objectives.
        initial: Positive weights with a sum of 1. ``None``: all alike.
        eta: Step size η.
        lr_coupled: Whether η is the learning rate divided by ``mu``, as in the published code: weights freeze with it.
        mu: What the learning rate is divided by.
        accumulate: Calls of ``update`` whose mean influence moves the weights once.
        layers: Regular expression of the names of parameters whose gradients count. ``None``: all of them.
        clip_norm: Largest norm of a gradient, over all parameters, for ``normalize="clip"``. ``None``: none.
        normalize: ``clip`` scales gradients with a larger norm down to ``clip_norm``, ``unit`` scales all gradients to
            a norm of 1, ``none`` leaves them alone.
        min_weight: What no weight falls below.

    Raises:
        ValueError: If an argument is out of range.

    Source: Lu et al. 2025, arXiv:2509.11452.

    Examples:
        >>> weighting = RewardWeighting(["accuracy", "brevity"], eta=1.0)
        >>> weighting.update([[torch.tensor([1.0, 0.0])], [torch.tensor([-0.5, 0.0])]])
        tensor([0.6792, 0.3208], dtype=torch.float64)
    """

    log_weights: Tensor
    accumulator: Tensor
    count: Tensor
    last_influence: Tensor

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
    ) -> None:
        names = name_list("objectives", objectives)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"objectives is {names}; allowed is a list of different names, one at least")
        check_number("eta", eta, low=0.0)
        check_number("mu", mu, low=0.0, low_allowed=False)
        check_number("accumulate", accumulate, low=1, whole=True)
        check_choice("normalize", normalize, NORMALIZATIONS)
        check_number("min_weight", min_weight, low=0.0, high=1.0 / len(names) if len(names) > 1 else 1.0)
        if clip_norm is not None:
            check_number("clip_norm", clip_norm, low=0.0, low_allowed=False)
        weights = checked_weights("initial", initial, len(names))
        super().__init__()
        self.objectives = names
        self.eta = eta
        self.lr_coupled = lr_coupled
        self.mu = mu
        self.accumulate = accumulate
        self.layers = _compiled(layers)
        self.clip_norm = clip_norm
        self.normalize = normalize
        self.min_weight = min_weight
        zeros = torch.zeros(len(names), dtype=torch.float64)
        self.register_buffer("log_weights", torch.tensor(weights, dtype=torch.float64).log())
        self.register_buffer("accumulator", zeros)
        self.register_buffer("last_influence", zeros.clone())
        self.register_buffer("count", torch.tensor(0))

    @property
    def weights(self) -> Tensor:
        """The weights, (K,), fp64, with a sum of 1."""
        return self.log_weights.exp()

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Return the places of the parameters whose gradients count.

        Args:
            names: Names of all parameters.

        Raises:
            ValueError: If ``layers`` fits none.
        """
        places = [place for place, name in enumerate(names) if self.layers is None or self.layers.search(name)]
        if not places:
            pattern = None if self.layers is None else self.layers.pattern
            raise ValueError(
                f"layers is {pattern!r}, which is found in no name of a parameter that is trained; they are: "
                f"{', '.join(names) or 'none'}"
            )
        return places

    @torch.no_grad()
    def gram(self, gradients: Sequence[Sequence[Tensor]], names: Sequence[str] | None = None) -> Tensor:
        """Return the inner products of gradients, scaled as ``normalize`` says, over the layers that count.

        Args:
            gradients: One list of tensors per objective, of all parameters.
            names: Names of the parameters, which ``layers`` needs.

        Raises:
            ValueError: If ``layers`` is given without names, or fits none.
            ShardedParameterError: If gradients are sharded in different ways.
        """
        if self.layers is not None and names is None:
            raise ValueError("layers is given, so that the names of the parameters are needed: update(..., names=...)")
        groups = _process_groups(gradients[0])
        gram = whole = _summed(gradient_gram(gradients), groups)
        if self.layers is not None and names is not None:
            places = self.chosen(names)
            if len(places) < len(names):
                gram = _summed(gradient_gram([[row[place] for place in places] for row in gradients]), groups)
        norms = whole.diagonal().sqrt()
        if self.normalize == "unit":
            factors = torch.where(norms > 0, 1.0 / norms, 0.0)
        elif self.normalize == "clip" and self.clip_norm is not None:
            factors = (self.clip_norm / norms).clamp(max=1.0)
        else:
            factors = torch.ones_like(norms)
        return factors[:, None] * gram * factors

    @torch.no_grad()
    def update(
        self,
        gradients: Sequence[Sequence[Tensor]] | Tensor,
        lr: float | None = None,
        names: Sequence[str] | None = None,
    ) -> Tensor:
        """Take the gradients of all objectives into account and return the weights.

        Gradients that are not finite, as fp16 makes before its scale has settled, change nothing.

        Args:
            gradients: One list of tensors per objective, of all parameters, or what ``gram`` returned.
            lr: Learning rate, which ``lr_coupled`` needs.
            names: Names of the parameters, which ``layers`` needs.

        Returns:
            The weights after the update, (K,).

        Raises:
            ValueError: If there are more or fewer objectives, or something that is needed is missing.
        """
        gram = gradients if isinstance(gradients, Tensor) else self.gram(gradients, names)
        if gram.shape != (len(self.objectives),) * 2:
            raise ValueError(
                f"there are gradients of {len(gram)} objectives; allowed are {len(self.objectives)}: "
                f"{', '.join(self.objectives)}"
            )
        eta = self._step_size(lr)
        gram = gram.to(self.log_weights)
        if not bool(gram.isfinite().all()):
            return self.weights
        self.last_influence.copy_(influence(gram))
        self.accumulator += self.last_influence
        self.count += 1
        if int(self.count) >= self.accumulate:
            mean = self.accumulator / self.count
            self.log_weights.copy_(update_log_weights(self.log_weights, mean, eta, self.min_weight))
            self.accumulator.zero_()
            self.count.zero_()
        return self.weights

    def _step_size(self, lr: float | None) -> float:
        if not self.lr_coupled:
            return self.eta
        if lr is None:
            raise ValueError("lr_coupled is True, so that the learning rate is needed: update(..., lr=...)")
        check_number("lr", lr, low=0.0)
        return lr / self.mu


def _process_groups(gradient: Sequence[Tensor]) -> list[Any]:
    """Return the groups of processes that have parts of a gradient between them."""
    layouts = {
        (part.device_mesh, tuple(dim for dim, kind in enumerate(part.placements) if not kind.is_replicate()))
        if hasattr(part, "placements")
        else None
        for part in gradient
    }
    if len(layouts) > 1:
        raise ShardedParameterError(
            f"gradients are sharded in {len(layouts)} different ways, so that their parts do not add up; shard all "
            f"parameters alike, or give the matrix of inner products instead of gradients"
        )
    layout = layouts.pop() if layouts else None
    return [] if layout is None else [layout[0].get_group(dim) for dim in layout[1]]


def _summed(gram: Tensor, groups: Sequence[Any]) -> Tensor:
    for group in groups:
        dist.all_reduce(gram, group=group)
    return gram


def _compiled(layers: str | None) -> Any:
    if layers is None:
        return None
    try:
        return re.compile(layers)
    except (re.error, TypeError) as error:
        raise ValueError(f"layers is {layers!r}; allowed is a regular expression, or None ({error})") from error
