"""Bounded, steep-at-zero functions of latent weights, and their gradients, in one pass over the weights each."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_choice
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import register, takes_triton
from lightning_weights.kernels.compand.eager import gradients, weights
from lightning_weights.kernels.compand.reference import FUNCTIONS, LIMITS, compand_reference

__all__ = ["FUNCTIONS", "LIMITS", "CompandFunction", "compand", "compand_reference"]

CompandFunction = Literal["arctan", "tanh", "softsign"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # weights of the Triton kernel; scales and widths are fp32


def _rows(tensor: Tensor, scales: Tensor) -> Tensor:
    """Lay out a tensor in one row per scale, so that element-wise code and kernels see two dimensions."""
    rows = scales.numel()
    return tensor.contiguous().view(rows, tensor.numel() // rows if rows else 0)


def _forward(latent: Tensor, a: Tensor, b: Tensor, function: str) -> Tensor:
    arguments = (_rows(latent, a), a.reshape(-1), b.reshape(-1), function)
    if latent.numel() and takes_triton(latent.device.type, [([latent], DTYPES), ([a, b], DTYPES[:1])]):
        from lightning_weights.kernels.compand.kernel import launch_weights

        return launch_weights(*arguments).view(latent.shape)
    return weights(*arguments).view(latent.shape)


def _forward_fake(latent: Tensor, a: Tensor, b: Tensor, function: str) -> Tensor:
    return latent.new_empty(latent.shape)


def _backward(
    latent: Tensor, a: Tensor, b: Tensor, upstream: Tensor, function: str, sums: bool
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (_rows(latent, a), a.reshape(-1), b.reshape(-1), _rows(upstream, a), function, sums)
    if latent.numel() and takes_triton(latent.device.type, [([latent, upstream], DTYPES), ([a, b], DTYPES[:1])]):
        from lightning_weights.kernels.compand.kernel import launch_gradients

        grads = launch_gradients(*arguments)
    else:
        grads = gradients(*arguments)
    return grads[0].view(latent.shape), grads[1].view(a.shape), grads[2].view(a.shape)


def _backward_fake(latent: Tensor, a: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    return latent.new_empty(latent.shape), a.new_empty(a.shape), a.new_empty(a.shape)


_forward_op = register(
    "compand",
    "(Tensor latent, Tensor a, Tensor b, str function) -> Tensor",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "compand_backward",
        "(Tensor latent, Tensor a, Tensor b, Tensor upstream, str function, bool sums) -> (Tensor, Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _Compand(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(latent: Tensor, a: Tensor, b: Tensor, function: str, known: Tensor | None) -> Tensor:
        # an alias: a Function that returns its very argument would pass gradients to it
        return _forward_op(latent, a, b, function) if known is None else known.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        latent, a, b, ctx.function, _ = inputs
        ctx.save_for_backward(latent, a, b)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        sums = any(ctx.needs_input_grad[1:3])
        grads = _backward_op(*ctx.saved_tensors, upstream, ctx.function, sums)
        wanted = [grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[:3], strict=True)]
        return *wanted, None, None


# apply() looks the signature up in every call, which takes longer than companding a small layer
_Compand.forward.__signature__ = inspect.signature(_Compand.forward)  # type: ignore[attr-defined]


def compand(
    latent: Tensor, a: Tensor, b: Tensor, function: CompandFunction = "arctan", *, known: Tensor | None = None
) -> Tensor:
    r"""Return the weights that latent weights stand for: odd, rising, bounded, and steepest at zero.

    $$w = \psi(v; a, b) = a \arctan(v / b), \quad a \tanh(v / b) \quad \text{or} \quad a\,\frac{v}{b + |v|}$$

    The gradient is $(a/b)\,(1 + v^2/b^2)^{-1}$ for the arctan: a/b at zero, falling to nothing at the bound. Only the
    latents are kept for it. All arithmetic is in fp32 or wider.

    Args:
        latent: Latent weights v of any shape.
        a: Scales a > 0: one number, or one per slice of the latents along dimension 0. Weights stay within ±aπ/2
            (arctan) or ±a.
        b: Widths b > 0, as many as ``a``: latents far below it pass with the gain a/b.
        function: ``arctan``, ``tanh``, which saturates faster, or ``softsign``, which saturates slower.
        known: The result if it is known already, of the same latents, scales and widths: then nothing is computed but
            gradients, later.

    Returns:
        Weights of the latents' shape and dtype. They can be differentiated once, also in ``a`` and ``b``; those sums
        are taken in a fixed order.

    Raises:
        ValueError: If a shape or the function is not allowed.
        ShardedParameterError: If the latents are sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Cakaj, Mehnert & Yang 2023, arXiv:2306.16993. The functions are inferred from its abstract.

    Examples:
        >>> compand(torch.tensor([0.0, 1.0, -1e9]), torch.tensor(2.0), torch.tensor(1.0))
        tensor([ 0.0000,  1.5708, -3.1416])
    """
    check_choice("function", function, FUNCTIONS)
    if hasattr(latent, "placements") or hasattr(a, "placements"):
        raise ShardedParameterError(
            "latent is sharded (a DTensor), and whole latents are needed; inside the forward pass of an FSDP module "
            "they are whole, elsewhere use latent.full_tensor()"
        )
    rows = a.numel()
    if a.shape != b.shape or (rows != 1 and (latent.dim() == 0 or rows != latent.shape[0])):
        raise ValueError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)} for latent weights of shape {tuple(latent.shape)}; "
            f"allowed are one number each, or one per slice along dimension 0"
        )
    wide = torch.promote_types(latent.dtype, torch.float32)
    companded: Tensor = _Compand.apply(latent, a.to(wide), b.to(wide), function, known)  # type: ignore[no-untyped-call]
    return companded
