"""Inner products of the gradients of several objectives, without a matrix of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_weights.kernels._op import local_shards, register, takes_triton
from lightning_weights.kernels.gradient_gram.eager import gram_in_pieces, sum_dtype
from lightning_weights.kernels.gradient_gram.reference import gradient_gram_reference

__all__ = ["gradient_gram", "gradient_gram_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # gradients of the Triton kernel


def _gram(gradients: Sequence[Tensor], objectives: int) -> Tensor:
    if takes_triton(gradients[0].device.type, [(gradients, DTYPES)]):
        from lightning_weights.kernels.gradient_gram.kernel import launch_gradient_gram

        return launch_gradient_gram(gradients, objectives)
    return gram_in_pieces(gradients, objectives).clone()


def _gram_fake(gradients: Sequence[Tensor], objectives: int) -> Tensor:
    return gradients[0].new_empty(objectives, objectives, dtype=sum_dtype(gradients[0]))


_op = register("gradient_gram", "(Tensor[] gradients, int objectives) -> Tensor", implementation=_gram, fake=_gram_fake)


def gradient_gram(gradients: Sequence[Sequence[Tensor]]) -> Tensor:
    r"""Return the inner products of K gradients, each a list of tensors: [`gradient_gram_reference`][], fused.

    $$G_{kj} = \sum_p \langle g_{k,p}, g_{j,p} \rangle$$

    Every element is read once and nothing is concatenated. Products are added up in fp32 within a block, and over
    blocks in fp64 and in a fixed order. Of sharded gradients (FSDP2) it is the part of this process: add it up over
    processes.

    Args:
        gradients: K lists of tensors of one device, of the same shapes in all of them.

    Returns:
        G in fp64, (K, K), symmetric.

    Raises:
        ValueError: If the lists differ in length or shapes, or are empty.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> gradient_gram([[torch.tensor([3.0, 0.0]), torch.ones(2)], [torch.tensor([1.0, 2.0]), torch.zeros(2)]])
        tensor([[11.,  3.],
                [ 3.,  5.]], dtype=torch.float64)
    """
    shapes = [[part.shape for part in row] for row in gradients]
    if not shapes or not shapes[0] or any(row != shapes[0] for row in shapes):
        counts = ", ".join(str(len(row)) for row in shapes) or "no"
        raise ValueError(
            f"gradients are lists of {counts} tensors; allowed are one list per objective, all with the same shapes. "
            f"Use zeros where an objective does not reach a parameter"
        )
    rows = local_shards(*[[part.detach() for part in row] for row in gradients])
    gram: Tensor = _op([part for row in rows for part in row], len(rows))
    return gram
