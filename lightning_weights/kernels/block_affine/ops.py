"""Registration of the block-affine weight, of its gradient and of the linear layer that uses it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import KernelUnavailableError
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import kernel_mode, register, takes_triton
from lightning_weights.kernels.block_affine.cost import LARGEST_BLOCK
from lightning_weights.kernels.block_affine.eager import build, gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernels, for the weight
BLOCK_DTYPES = DTYPES[:1]


def _takes_triton(r: int, weights: list[Tensor], blocks: list[Tensor]) -> bool:
    if not takes_triton(weights[0].device.type, [(weights, DTYPES), (blocks, BLOCK_DTYPES)]):
        return False
    if r > LARGEST_BLOCK and kernel_mode() == "triton":
        raise KernelUnavailableError(f"r is {r}; the Triton kernel holds blocks up to {LARGEST_BLOCK}. Use 'auto'")
    return r <= LARGEST_BLOCK


def _build(weight: Tensor, block: Tensor, dtype: torch.dtype, offset: bool) -> Tensor:
    if _takes_triton(block.shape[-1], [weight], [block]):
        from lightning_weights.kernels.block_affine.kernel import launch_build

        return launch_build(weight, block, dtype, offset)
    return build(weight, block, dtype, offset)


def _build_fake(weight: Tensor, block: Tensor, dtype: torch.dtype, offset: bool) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


def _gradient(grad: Tensor, tokens: Tensor | None, weight: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    if _takes_triton(shape[-1], [weight, grad], [weight.new_empty(0, dtype=dtype)]):
        from lightning_weights.kernels.block_affine.kernel import launch_gradient

        return launch_gradient(grad, tokens, weight, shape, dtype)
    return gradient(grad, tokens, weight, shape, dtype)


def _gradient_fake(grad: Tensor, tokens: Tensor | None, weight: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=weight.device)


build_op = register(
    "block_affine",
    "(Tensor weight, Tensor block, ScalarType dtype, bool offset) -> Tensor",
    implementation=_build,
    fake=_build_fake,
)
gradient_op = register(
    "block_affine_gradient",
    "(Tensor grad, Tensor? tokens, Tensor weight, SymInt[] shape, ScalarType dtype) -> Tensor",
    implementation=_gradient,
    fake=_gradient_fake,
)


def _backward(grad: Tensor, weight: Tensor, block: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor]:
    slope = build_op(grad, block.mT, weight.dtype, False) if needed[0] else grad.new_empty(0)
    return slope, gradient_op(grad, None, weight, block.shape, block.dtype) if needed[1] else grad.new_empty(0)


def _backward_fake(grad: Tensor, weight: Tensor, block: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(weight, memory_format=torch.contiguous_format) if needed[0] else grad.new_empty(0),
        torch.empty_like(block, memory_format=torch.contiguous_format) if needed[1] else grad.new_empty(0),
    )


def _linear_backward(
    grad: Tensor, tokens: Tensor, weight: Tensor, block: Tensor, built: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    slopes = [grad.new_empty(0) for _ in needed]
    if needed[0]:
        slopes[0] = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        # a weight made here is gone again before the gradient of the block needs memory of its own
        torch.mm(grad, build_op(weight, block, grad.dtype, True) if built is None else built, out=slopes[0])
    if needed[1]:
        slopes[1] = gradient_op(grad, tokens, weight, block.shape, block.dtype)
    if needed[2]:
        slopes[2] = grad.sum(0, dtype=grad.dtype)
    return slopes[0], slopes[1], slopes[2]


def _linear_backward_fake(
    grad: Tensor, tokens: Tensor, weight: Tensor, block: Tensor, built: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (tokens.shape, block.shape, weight.shape[:1])
    dtypes = (grad.dtype, block.dtype, grad.dtype)
    return tuple(  # type: ignore[return-value]
        torch.empty(shape if want else 0, dtype=dtype, device=grad.device)
        for shape, dtype, want in zip(shapes, dtypes, needed, strict=True)
    )


backward_op = differentiable_once(
    register(
        "block_affine_backward",
        "(Tensor grad, Tensor weight, Tensor block, bool[] needed) -> (Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)
linear_backward_op = differentiable_once(
    register(
        "block_affine_linear_backward",
        "(Tensor grad, Tensor tokens, Tensor weight, Tensor block, Tensor? built, bool[] needed) "
        "-> (Tensor, Tensor, Tensor)",
        implementation=_linear_backward,
        fake=_linear_backward_fake,
    )
)


class BlockAffine(torch.autograd.Function):
    """The built weight, differentiable in weight and block."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, block: Tensor, dtype: torch.dtype) -> Any:
        return build_op(weight, block, dtype, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = list(ctx.needs_input_grad[:2])
        slopes = backward_op(grad, *ctx.saved_tensors, needed)
        return (*(slope if want else None for slope, want in zip(slopes, needed, strict=True)), None)


class BlockAffineLinear(torch.autograd.Function):
    """A linear layer with the built weight, differentiable in tokens, block and bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, weight: Tensor, block: Tensor, bias: Tensor | None, built: Tensor | None) -> Tensor:
        matrix = build_op(weight, block, tokens.dtype, True) if built is None else built
        return torch.nn.functional.linear(tokens, matrix, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tokens, weight, block, _, built = inputs
        ctx.save_for_backward(tokens, weight, block, built)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needed = [ctx.needs_input_grad[index] for index in (0, 2, 3)]
        slopes = linear_backward_op(grad, *ctx.saved_tensors, needed)
        tokens, block, bias = (slope if want else None for slope, want in zip(slopes, needed, strict=True))
        return tokens, None, block, bias, None
