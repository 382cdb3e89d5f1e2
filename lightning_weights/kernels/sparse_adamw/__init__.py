"""One AdamW step on chosen entries of matrices: gather, update, scatter, in one pass over those entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError
from lightning_weights.kernels._mixing import mixed
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.sparse_adamw.eager import adam_in_place, step_in_pieces
from lightning_weights.kernels.sparse_adamw.reference import sparse_adamw_reference

__all__ = ["adam_in_place", "mixed", "sparse_adamw", "sparse_adamw_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights and gradients of the Triton kernel
INDEX, STATE = (torch.int32,), (torch.float32,)


def _step(
    params: Sequence[Tensor],
    indices: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step_sizes: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    rounding_seed: int | None,
) -> None:
    arguments = (params, indices, grads, firsts, seconds, step_sizes, beta1, beta2, eps, decay, rounding_seed)
    covered = [(params, DTYPES), (grads, DTYPES), (indices, INDEX), (firsts, STATE), (seconds, STATE)]
    if takes_triton(params[0].device.type, covered):
        from lightning_weights.kernels.sparse_adamw.kernel import launch_sparse_adamw

        launch_sparse_adamw(*arguments)
    else:
        step_in_pieces(*arguments)


def _step_fake(*arguments: object) -> None:
    return None


_op = register(
    "sparse_adamw",
    "(Tensor(a!)[] params, Tensor[] indices, Tensor[] grads, Tensor(b!)[] firsts, Tensor(c!)[] seconds, "
    "float[] step_sizes, float beta1, float beta2, float eps, float decay, int? rounding_seed) -> ()",
    implementation=_step,
    fake=_step_fake,
)


def sparse_adamw(
    params: Sequence[Tensor],
    indices: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step_sizes: Sequence[float],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    rounding_seed: int | None = None,
) -> None:
    """Take one AdamW step on chosen entries of tensors, in place: [`sparse_adamw_reference`][] for each, fused.

    Args:
        params: Weights of one device.
        indices: Row-major flat indices of the chosen entries of each, int32, ascending, each once.
        grads: Gradients, each of the shape of its weights or of the chosen entries alone, (k,).
        firsts: First moments, (k,) each, updated in place.
        seconds: Second moments, (k,) each, updated in place.
        step_sizes: Learning rate with its bias correction, for each tensor.
        beta1: β₁.
        beta2: β₂.
        eps: ε, outside the root and outside the bias correction.
        decay: What a decoupled weight decay leaves of a weight.
        rounding_seed: Rounds bf16 weights stochastically; another seed for every step, below 2³¹. None rounds to the
            nearest.

    Raises:
        ShardedParameterError: If a tensor is sharded: flat indices are those of the whole.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> w, idx = torch.zeros(2, 2), torch.tensor([1, 2], dtype=torch.int32)
        >>> m, v, grad = torch.zeros(2), torch.zeros(2), torch.tensor([[5.0, 1.0], [-1.0, 5.0]])
        >>> sparse_adamw([w], [idx], [grad], [m], [v], [0.5], beta1=0.5, beta2=0.75, eps=0.0)
        >>> w.tolist(), m.tolist(), v.tolist()
        ([[0.0, -0.5], [0.5, 0.0]], [0.5, -0.5], [0.25, 0.25])
    """
    if any(hasattr(tensor, "placements") for tensor in (*params, *grads)):
        raise ShardedParameterError(
            "flat indices of chosen entries point into whole tensors, and one of these is sharded; train with DDP"
        )
    if params:  # without any tensor the dispatcher knows no device
        _op(params, indices, grads, firsts, seconds, step_sizes, beta1, beta2, eps, decay, rounding_seed)
