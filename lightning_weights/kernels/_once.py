"""Backward passes that are operators themselves, and say so when somebody wants to differentiate them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def differentiable_once(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the operator of a backward pass, so that second derivatives raise instead of being zero.

    A raw operator without formula gives ``torch.func.grad`` of a gradient silent zeros.

    Args:
        operator: What ``register`` returned for the backward pass.

    Returns:
        A function with the operator's arguments and results, to be called inside the backward pass.
    """

    class Once(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return operator(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            return None

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError(
                f"{operator} is the backward pass of an operator that can be differentiated once only; for second "
                f"derivatives use the operator's reference, whose gradients are autograd's"
            )

    def call(*arguments: Any) -> Any:
        # What torch.compile makes refuses second derivatives itself, and Dynamo cannot trace a Function in a Function.
        # Without gradients nobody asks for second ones, and a Function costs more than many an operator.
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return operator(*arguments)
        return Once.apply(*arguments)  # type: ignore[no-untyped-call]

    return call
