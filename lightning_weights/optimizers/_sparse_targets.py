"""Which parameters of an optimizer get a mask, what they are called in messages, and what cannot be trained."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.optimizers._adam_groups import parameter_name

NARROWEST = 2  # bytes of an element; below that it is a code of a quantised weight, not a number that can be trained


class Target(NamedTuple):
    """A parameter with its group, its place in it, and its place among all parameters of the optimizer."""

    group: dict[str, Any]
    place: int
    position: int
    param: Tensor

    @property
    def name(self) -> str:
        """Return what messages call the parameter."""
        return parameter_name(self.group, self.place)

    @property
    def marked(self) -> bool | None:
        """Return the mark of the parameter: True for a target, False for none, None where nobody said."""
        return getattr(self.param, "_lw_sparse", None)

    @property
    def gathered(self) -> Tensor | None:
        """Return the gradient of the chosen entries alone, where hooks have gathered it."""
        return getattr(self.param, "_lw_sparse_grad", None)

    @property
    def gradient(self) -> Tensor | None:
        """Return the gradient that the step uses."""
        return self.param.grad if self.gathered is None else self.gathered


def all_parameters(groups: Sequence[dict[str, Any]]) -> Iterator[Target]:
    """Yield every parameter of every group."""
    position = 0
    for group in groups:
        for place, param in enumerate(group["params"]):
            yield Target(group, place, position, param)
            position += 1


def sparse_targets(groups: Sequence[dict[str, Any]]) -> list[Target]:
    """Return the parameters marked ``_lw_sparse``; without any, the trainable matrices that are not marked False.

    Raises:
        ValueError: If a marked parameter cannot be trained sparsely, or no parameter can.
        ShardedParameterError: If one of them is sharded.
    """
    everything = list(all_parameters(groups))
    chosen = [target for target in everything if target.marked is True]
    for target in chosen:
        check_marked(target)
    if not chosen:
        chosen = [t for t in everything if t.param.requires_grad and t.param.dim() == 2 and t.marked is None]
    if not chosen:
        raise ValueError(
            "no parameter is a trainable matrix, so there is nothing to choose entries of; pass the weights of linear "
            "layers, and add the LIFTFinetuning callback, which marks them, before the optimizer is used"
        )
    for target in chosen:
        if hasattr(target.param, "placements"):
            raise ShardedParameterError(
                f"{target.name} is sharded, and principal weights need the singular vectors of the whole matrix. "
                f"Train with DDP, whose traffic SparseDDPStrategy reduces to the chosen entries"
            )
    return chosen


def check_marked(target: Target) -> None:
    """Refuse what cannot be trained in place."""
    param, name = target.param, target.name
    if not param.is_floating_point() or param.element_size() < NARROWEST:
        raise ValueError(
            f"{name} holds {param.dtype}: single entries of a quantised weight cannot be trained in place. Load the "
            f"model in bf16, or fine-tune it with Bone or LoRA, which leave the weight alone"
        )
    if param.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(param.shape)} and is marked; only matrices have principal weights")
    if not param.requires_grad:
        raise ValueError(f"{name} is marked and frozen, so it gets no gradient; call requires_grad_(True) on it")


def check_gradient(target: Target, indices: Tensor | None, wants_dense: bool) -> None:
    """Refuse a gradient that the step cannot use; ``indices`` are the chosen entries, None for a dense parameter."""
    gradient, gathered = target.param.grad, target.gathered
    if gradient is not None and (gradient.layout != torch.strided or gradient.is_complex()):
        raise RuntimeError(
            f"the gradient of {target.name} is {gradient.layout} {gradient.dtype}; LIFTAdamW takes dense real ones: "
            f"use nn.Embedding(sparse=False), or train that layer with another optimizer"
        )
    if gathered is None:
        return
    if wants_dense and gradient is None:
        raise RuntimeError(
            f"selector='gradient' chooses the entries of {target.name} in this step by its whole gradient, and only "
            f"chosen entries were gathered; ask wants_dense_gradient(param) before gathering"
        )
    if indices is None or gathered.shape != indices.shape:
        raise RuntimeError(
            f"the gathered gradient of {target.name} has shape {tuple(gathered.shape)}, its selection "
            f"{'does not exist' if indices is None else tuple(indices.shape)}; gather at selection(param)"
        )
