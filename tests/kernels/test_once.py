"""Second derivatives through an operator's backward pass raise, however they are asked for."""

import pytest
import torch

from lightning_weights.kernels._once import differentiable_once


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return slope(grad, *ctx.saved_tensors)


slope = differentiable_once(lambda grad, x: 2 * x * grad)


def square(x):
    return Square.apply(x).sum()


def test_first_derivatives_are_right():
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(torch.autograd.grad(square(x), x)[0], 2 * x)
    assert torch.equal(torch.func.grad(square)(x.detach()), 2 * x.detach())
    assert torch.equal(torch.func.vmap(torch.func.grad(square))(x.detach()), 2 * x.detach())
    compiled = torch.compile(square, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(x), x)[0], 2 * x)


def test_second_derivatives_raise():
    x = torch.randn(5, requires_grad=True)
    (gradient,) = torch.autograd.grad(square(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only; for second derivatives use"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        torch.func.grad(lambda y: torch.func.grad(square)(y).sum())(x.detach())
