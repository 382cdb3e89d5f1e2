"""Linear layers in which every sample of a batch has low-rank matrices of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError, ShardedParameterError
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import exact_products, kernel_mode, register, takes_triton
from lightning_weights.kernels.per_sample_lora.cost import LARGEST_RANK
from lightning_weights.kernels.per_sample_lora.eager import expand, gradients, shrink
from lightning_weights.kernels.per_sample_lora.reference import per_sample_lora_reference

__all__ = ["per_sample_lora", "per_sample_lora_reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernel


def _forward(base: Tensor, tokens: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the outputs and h = x Aᵀ, which the backward pass needs."""
    inner = shrink(tokens, a)
    if _takes_triton(base, b.shape[-1]):
        from lightning_weights.kernels.per_sample_lora.kernel import launch_expand

        return launch_expand(base, inner, b, scale), inner
    return expand(base, inner, b, scale), inner


def _takes_triton(base: Tensor, r: int) -> bool:
    if not takes_triton(base.device.type, [([base], DTYPES)], exact_products=exact_products(base.dtype)):
        return False
    if r > LARGEST_RANK and kernel_mode() == "triton":
        raise KernelUnavailableError(f"the rank is {r}; the Triton kernel holds up to {LARGEST_RANK}. Use 'auto'")
    return r <= LARGEST_RANK


def _forward_fake(base: Tensor, tokens: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    outputs = torch.empty_like(base, memory_format=torch.contiguous_format)
    return outputs, tokens.new_empty((tokens.shape[0], tokens.shape[1], a.shape[1]))


def _backward_fake(
    grad: Tensor, tokens: Tensor, inner: Tensor, a: Tensor, b: Tensor, scale: float, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    found = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else grad.new_empty(0)
        for tensor, want in zip((tokens, a, b), needed, strict=True)
    ]
    return found[0], found[1], found[2]


_forward_op = register(
    "per_sample_lora",
    "(Tensor base, Tensor tokens, Tensor a, Tensor b, float scale) -> (Tensor, Tensor)",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "per_sample_lora_backward",
        "(Tensor grad, Tensor tokens, Tensor inner, Tensor a, Tensor b, float scale, bool[] needed) "
        "-> (Tensor, Tensor, Tensor)",
        implementation=gradients,
        fake=_backward_fake,
    )
)


class _PerSampleLoRA(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(base: Tensor, tokens: Tensor, a: Tensor, b: Tensor, scale: float) -> Any:
        return _forward_op(base, tokens, a, b, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, tokens, a, b, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(tokens, output[1], a, b)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad, needed = grad_outputs[0], list(ctx.needs_input_grad[1:4])
        found = _backward_op(grad, *ctx.saved_tensors, ctx.scale, needed)
        slopes = (slope if want else None for slope, want in zip(found, needed, strict=True))
        return (grad if ctx.needs_input_grad[0] else None, *slopes, None)


def per_sample_lora(base: Tensor, tokens: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""Add to a layer's outputs the low-rank update of the sample that each token belongs to.

    $$y_n = \mathrm{base}_n + s \, (x_n A_n^\top) B_n^\top$$

    The update is never in memory. All tensors have one data type, products are accumulated in fp32 or wider, and h =
    x Aᵀ is rounded to that type. Differentiable once, in ``base``, ``tokens``, ``a`` and ``b``:

    $$\nabla_{A_n} = s \, B_n^\top \nabla_{y_n}^\top x_n, \qquad \nabla_{B_n} = s \, \nabla_{y_n}^\top (x_n A_n^\top)$$

    Args:
        base: Outputs of the frozen layer (N, T, out).
        tokens: Its inputs x (N, T, in).
        a: A of every sample (N, r, in).
        b: B of every sample (N, out, r).
        scale: s, usually α / r.

    Returns:
        y (N, T, out), a new tensor. Where B is zero it equals ``base``.

    Raises:
        ValueError: If shapes or data types don't fit.
        ShardedParameterError: If an operand is sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Examples:
        >>> x, a, b = torch.ones(2, 1, 2), torch.ones(2, 1, 2), torch.tensor([[[0.0]], [[3.0]]])
        >>> per_sample_lora(torch.zeros(2, 1, 1), x, a, b, 0.5)
        tensor([[[0.]],
        <BLANKLINE>
                [[3.]]])
    """
    _check(base, tokens, a, b)
    outputs: Tensor
    outputs, _ = _PerSampleLoRA.apply(base, tokens, a, b, float(scale))  # type: ignore[no-untyped-call]
    return outputs


def _check(base: Tensor, tokens: Tensor, a: Tensor, b: Tensor) -> None:
    operands = {"base": base, "tokens": tokens, "a": a, "b": b}
    if any(hasattr(tensor, "placements") for tensor in operands.values()):
        raise ShardedParameterError("adapters per sample need whole tensors, but one is sharded: use full_tensor()")
    fits = all(tensor.dim() == 3 for tensor in operands.values())
    if fits:
        (samples, length, outputs), inputs, r = base.shape, tokens.shape[2], a.shape[1]
        fits = tokens.shape[:2] == (samples, length) and r > 0
        fits = fits and a.shape == (samples, r, inputs) and b.shape == (samples, outputs, r)
    if not fits:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in operands.items())
        raise ValueError(
            f"the shapes are {shapes}; allowed are base (N, T, out), tokens (N, T, in), a (N, r, in) and b (N, out, r)"
        )
    if len({tensor.dtype for tensor in operands.values()}) > 1 or not base.is_floating_point():
        types = ", ".join(f"{name} {tensor.dtype}" for name, tensor in operands.items())
        raise ValueError(f"the data types are {types}; allowed is one floating-point type for all")
