"""Weights that are linear combinations of templates, written block by block into one matrix in a single pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_weights.errors import ShardedParameterError, check_number
from lightning_weights.kernels._once import differentiable_once
from lightning_weights.kernels._op import kernel_mode, register, takes_triton
from lightning_weights.kernels.mix_templates.eager import gradients, weights
from lightning_weights.kernels.mix_templates.reference import mix_templates_reference

__all__ = ["mix_templates", "mix_templates_reference"]

SMALL = 1 << 14  # numbers in a set of templates: up to so many, calling an operator takes longer than mixing on a CPU
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of templates and weights in the Triton kernel; factors: fp32


def _matrices(first: Tensor, second: Tensor | None) -> list[Tensor]:
    """Lay out sets of templates as (K, o, everything else): what lies in a row of a block stays together."""
    sets = (first,) if second is None else (first, second)
    return [part.contiguous().view(*part.shape[:2], _row(part)) for part in sets]


def _row(templates: Tensor) -> int:
    return templates[0, 0].numel()


def _shape(first: Tensor, sets: Sequence[int], columns: int) -> tuple[int, ...]:
    _, o, i, *kernel = first.shape
    return (o * (len(sets) // columns), i * columns, *kernel)


def _forward(
    first: Tensor, second: Tensor | None, coefficients: Tensor, sets: Sequence[int], columns: int, dtype: torch.dtype
) -> Tensor:
    templates = _matrices(first, second)
    narrow = first.new_empty(0, dtype=dtype)
    if takes_triton(first.device.type, [([*templates, narrow], DTYPES), ([coefficients], DTYPES[:1])]):
        from lightning_weights.kernels.mix_templates.launch import launch_weights

        weight = launch_weights(templates, coefficients, sets, columns, dtype)
    else:
        weight = weights(templates, coefficients, sets, columns).to(dtype)
    return weight.view(_shape(first, sets, columns))


def _forward_fake(
    first: Tensor, second: Tensor | None, coefficients: Tensor, sets: Sequence[int], columns: int, dtype: torch.dtype
) -> Tensor:
    return first.new_empty(_shape(first, sets, columns), dtype=dtype)


def _backward(
    first: Tensor,
    second: Tensor | None,
    coefficients: Tensor,
    upstream: Tensor,
    sets: Sequence[int],
    columns: int,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    templates = _matrices(first, second)
    arguments = (templates, coefficients, upstream.contiguous(), sets, columns, sums)
    if takes_triton(first.device.type, [([*templates, upstream], DTYPES), ([coefficients], DTYPES[:1])]):
        from lightning_weights.kernels.mix_templates.launch import launch_gradients

        grads, grad_coefficients = launch_gradients(*arguments)
    else:
        grads, grad_coefficients = gradients(*arguments)
    grad_second = first.new_empty(0) if second is None else grads[1].view(first.shape)
    return grads[0].view(first.shape), grad_second, grad_coefficients


def _backward_fake(
    first: Tensor, second: Tensor | None, coefficients: Tensor, *arguments: object
) -> tuple[Tensor, Tensor, Tensor]:
    grad_second = first.new_empty(0 if second is None else first.shape)
    return first.new_empty(first.shape), grad_second, torch.empty_like(coefficients)


_forward_op = register(
    "mix_templates",
    "(Tensor first, Tensor? second, Tensor coefficients, int[] sets, int columns, ScalarType dtype) -> Tensor",
    implementation=_forward,
    fake=_forward_fake,
)
_backward_op = differentiable_once(
    register(
        "mix_templates_backward",
        "(Tensor first, Tensor? second, Tensor coefficients, Tensor upstream, int[] sets, int columns, bool sums) "
        "-> (Tensor, Tensor, Tensor)",
        implementation=_backward,
        fake=_backward_fake,
    )
)


class _MixTemplates(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        first: Tensor, second: Tensor | None, coefficients: Tensor, sets: list[int], columns: int, dtype: torch.dtype
    ) -> Tensor:
        return _forward_op(first, second, coefficients, sets, columns, dtype)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, coefficients, ctx.sets, ctx.columns, _ = inputs
        ctx.save_for_backward(first, second, coefficients)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads = _backward_op(*ctx.saved_tensors, upstream, ctx.sets, ctx.columns, ctx.needs_input_grad[2])
        wanted = [grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[:3], strict=True)]
        return *wanted, None, None, None


# apply() looks the signature up in every call, which takes longer than mixing a small layer
_MixTemplates.forward.__signature__ = inspect.signature(_MixTemplates.forward)  # type: ignore[attr-defined]


def mix_templates(
    templates: Sequence[Tensor],
    coefficients: Tensor,
    sets: Sequence[int],
    columns: int = 1,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Return the weight whose blocks are linear combinations of templates.

    $$W_b = \sum_{t=1}^{K} \alpha_{b,t}\, T_{s(b),t}$$

    All arithmetic is in fp32 or wider, and a block has the same bits wherever it stands. Small weights on the CPU are
    mixed by the reference, for which there is no operator to call.

    Args:
        templates: One or two sets of K templates, each set of shape (K, o, i, ...), where (o, i, ...) is the shape of a
            block: outputs, inputs, and a convolution's kernel.
        coefficients: α: a row of K factors for every block, of shape (blocks, K).
        sets: s: which set each block is mixed from, at most two blocks from one; blocks come in reading order.
        columns: How many blocks there are beside each other.
        dtype: Of the weight. ``None``: that of the templates.

    Returns:
        The weight, of shape (o · blocks / columns, i · columns, ...). It can be differentiated once, in templates and
        coefficients, whose sums are taken in a fixed order.

    Raises:
        ValueError: If shapes, sets or columns do not fit together.
        ShardedParameterError: If templates are sharded.
        KernelUnavailableError: If Triton is demanded and cannot run here.

    Source: Pham, Teterwak, Nelson & Plummer 2024, arXiv:2311.04251.

    Examples:
        >>> templates = torch.tensor([[[1.0]], [[10.0]]])
        >>> mix_templates([templates], torch.tensor([[1.0, 2.0], [3.0, 0.0]]), (0, 0), columns=2)
        tensor([[21.,  3.]])
    """
    if any(hasattr(part, "placements") for part in (*templates, coefficients)):
        raise ShardedParameterError(
            "templates are sharded (DTensors), and whole ones are needed; inside the forward pass of an FSDP module "
            "they are whole, elsewhere use full_tensor()"
        )
    if not torch.compiler.is_compiling():  # which would trace the check, and complain of the cache
        _check(tuple(part.shape for part in templates), coefficients.shape, tuple(sets), columns)
    first, second = templates[0], templates[1] if len(templates) > 1 else None
    dtype = first.dtype if dtype is None else dtype
    if _is_small(first):
        return mix_templates_reference(templates, coefficients, sets, columns).to(dtype)
    wide = torch.promote_types(first.dtype, torch.float32)
    mixed: Tensor = _MixTemplates.apply(  # type: ignore[no-untyped-call]
        first, second, coefficients.to(wide), list(sets), columns, dtype
    )
    return mixed


def _is_small(templates: Tensor) -> bool:
    if torch.compiler.is_compiling() or templates.device.type != "cpu" or templates.numel() > SMALL:
        return False
    return kernel_mode() != "triton"


@lru_cache(maxsize=1024)
def _check(templates: tuple[torch.Size, ...], coefficients: torch.Size, sets: tuple[int, ...], columns: int) -> None:
    """Check shapes, once for all calls with the same ones: checking takes longer than mixing a small layer."""
    check_number("columns", columns, low=1, whole=True)
    if not 1 <= len(templates) <= 2 or len(set(templates)) > 1 or len(templates[0]) < 3 or not templates[0].numel():
        raise ValueError(
            f"templates have shapes {', '.join(str(tuple(shape)) for shape in templates) or 'none'}; allowed are one "
            f"or two sets, both of one shape (K, o, i, ...) with at least one number"
        )
    used = [sets.count(which) for which in range(len(templates))]
    if sum(used) != len(sets) or not all(1 <= count <= 2 for count in used) or len(sets) % columns:
        raise ValueError(
            f"sets is {sets} and columns {columns} for {len(templates)} sets of templates; allowed is a number per "
            f"block, each set once or twice, and as many blocks as fill their columns"
        )
    if coefficients != (len(sets), templates[0][0]):
        raise ValueError(
            f"coefficients have shape {tuple(coefficients)}; allowed is ({len(sets)}, {templates[0][0]}): a row for "
            f"every block, with a factor for every template"
        )
